"""The contract of methods, held where they are called.

Conformance tries a method on samples; a model has other layers, and not every plugin was checked.
What a method breaks, and what it raises, is an error that names the layer, the method and, for a
plugin, its distribution and version: nothing that it leaves out or adds passes in silence.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from trinity.methods import errors, registry
from trinity.methods.contract import Reported
from trinity.methods.errors import PluginError, TrinityError
from trinity.methods.formats import CompressedWeight, format_of, kinds
from trinity.methods.plugins import OURS
from trinity.methods.rotations import ORTHOGONAL
from trinity.methods.searching import Levels
from trinity.methods.transforms import Fold, Scaled

T = TypeVar("T")
NAMES_SHOWN = 3


def call(method: str, where: str, run: Callable[[], T], given: Mapping[str, object]) -> T:
    """What a method gives; its failures, and a change of what it was given, name it and the layer.

    given: what it must not change: tensors, or weights and statistics that hold some
    """
    before = [(name, tensor, tensor._version) for name, tensor in _tensors("", given)]
    try:
        result = run()
    except TrinityError as error:
        said = str(error) if str(error).startswith(f"{method}:") else f"{method}: {error}"
        raise _own_kind(error)(f"{where}: {said}") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise  # the machine's, whoever asked for too much
    except (Exception, SystemExit) as error:
        if not is_plugin(method):
            error.add_note(f"in {where}: method '{method}' of {owner(method)}")
            raise
        said = f"raised {type(error).__name__}: {error}" if str(error) else f"raised {error!r}"
        raise _broken(method, where, f"{said} (its traceback: --debug)") from error
    for name, tensor, version in before:
        if tensor._version != version:
            raise _broken(method, where, f"changed {name}, which it was given to read")
    return result


def weights(
    method: str, where: str, result: object, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Reported]:
    """What a method of several layers gave, by layer: one weight for each, no more and no fewer."""
    if not isinstance(result, Mapping):
        what = f"gave a {type(result).__name__} instead of a mapping of compressed weights"
        raise _broken(method, where, what)
    if left := shapes.keys() - result.keys():
        what = f"left out {_shown(left)}; of a layer that is to stay, give the current weight"
        raise _broken(method, where, what)
    if added := result.keys() - shapes.keys():
        raise _broken(method, where, f"gave {_shown(added)}, which it was not asked for")
    return {name: weight(method, name, result[name], shape) for name, shape in shapes.items()}


def scales(
    method: str, where: str, result: object, widths: Mapping[Fold, int]
) -> dict[Fold, Scaled]:
    """What a transform gave: positive finite scales for some of the folds that it was given.

    widths: channels of each fold
    """
    if not isinstance(result, Mapping):
        what = f"gave a {type(result).__name__} instead of a mapping of scales"
        raise _broken(method, where, what)
    for fold, found in result.items():
        if not isinstance(fold, Fold) or fold not in widths:
            raise _broken(method, where, f"gave a scale for {fold}, which it was not offered")
        if not isinstance(found, Scaled) or not isinstance(found.scale, Tensor):
            raise _broken(method, fold.into, f"gave a {type(found).__name__}, expected a Scaled")
        scale = found.scale
        if scale.shape != (widths[fold],) or not scale.is_floating_point():
            what = f"gave a scale of {list(scale.shape)} for {widths[fold]} channels"
            raise _broken(method, fold.into, what)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise _broken(method, fold.into, "gave a scale that is not positive and finite")
        _check_details(method, fold.into, found.details)
    return dict(result)


def rotation(method: str, result: object, width: int) -> Tensor:
    """What turns a stream: an orthogonal matrix.  -> float32 [width, width]"""
    where = "compress.steps"
    if not isinstance(result, Tensor) or result.shape != (width, width):
        shape = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise _broken(method, where, f"gave {shape} for a stream of {width} channels")
    off = (result.double().T @ result.double() - torch.eye(width, device=result.device)).abs()
    if not bool(off.max() <= ORTHOGONAL):
        raise _broken(method, where, "gave a matrix that is not orthogonal")
    return result.float()


def measured(
    method: str, where: str, result: object, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """What a planning method measured of a block: finite numbers of each of its layers."""
    if not isinstance(result, Mapping) or set(result) != set(names):
        raise _broken(method, where, f"gave no numbers for each of {_shown(set(names))}")
    for name, numbers in result.items():
        _check_details(method, name, numbers)
        if not all(isinstance(value, (int, float)) for value in numbers.values()):
            raise _broken(method, name, f"measured {dict(numbers)}, which are not all numbers")
    return {name: {key: float(value) for key, value in of.items()} for name, of in result.items()}


def allotted(method: str, result: object, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options that a planning method gave, by layer, for some of the layers that it saw."""
    if not isinstance(result, Mapping) or not set(result) <= set(names):
        raise _broken(method, "compress.steps", "gave options for layers that it did not see")
    for name, options in result.items():
        if not isinstance(options, Mapping):
            raise _broken(method, name, f"gave a {type(options).__name__} instead of options")
    return {name: dict(options) for name, options in result.items()}


def levels(method: str, result: object, names: Sequence[str]) -> Levels:
    """What a search tries: options by level of each of its layers, level 0 among them."""
    if not isinstance(result, Mapping) or set(result) != set(names):
        raise _broken(method, "compress.steps", f"gave no levels for each of {_shown(set(names))}")
    for name, found in result.items():
        if not isinstance(found, Mapping) or 0 not in found:
            raise _broken(method, name, f"gave {found!r} instead of options by level, 0 included")
        for level, options in found.items():
            if not isinstance(level, int) or not isinstance(options, Mapping):
                raise _broken(method, name, f"gave {options!r} at level {level!r}")
    return result


def choice(method: str, result: object, of: Levels) -> dict[str, int]:
    """The level that a search chose for each of its layers."""
    if not isinstance(result, Mapping) or result.keys() != of.keys():
        raise _broken(method, "compress.steps", "chose no level for each of the layers that it has")
    for name, level in result.items():
        if level not in of[name]:
            what = f"chose level {level!r}, which is none of {sorted(of[name])}"
            raise _broken(method, name, what)
    return dict(result)


def weight(method: str, where: str, result: object, shape: tuple[int, int]) -> Reported:
    """What a method gave for one layer, with its details if it told some."""
    made = result if isinstance(result, Reported) else Reported(result, {})  # type: ignore[arg-type]  # checked next
    _check_type(method, where, made.weight)
    if made.weight.shape != shape:
        what = f"gave {list(made.weight.shape)} for a layer of {list(shape)}"
        raise _broken(method, where, what)
    _check_details(method, where, made.details)
    return made


def loaded(method: str, where: str, result: object) -> dict[str, CompressedWeight]:
    """What a checkpoint source found, by layer."""
    if not isinstance(result, Mapping):
        what = f"gave a {type(result).__name__} instead of a mapping of compressed weights"
        raise _broken(method, where, what)
    for name, found in result.items():
        _check_type(method, name, found)
    return dict(result)


def same_formats(
    method: str, before: Mapping[str, CompressedWeight], after: Mapping[str, Reported]
) -> None:
    """Refuse a tuned model whose layers left in other formats than they came in."""
    for name, made in after.items():
        was, now = format_of(before[name]), format_of(made.weight)
        if was != now:
            what = f"got a weight stored as {was.label} and gave one stored as {now.label}"
            raise _broken(method, name, what)


def problem(method: Any, where: str, shape: tuple[int, int], config: Any) -> str | None:
    """Why a method cannot compress a layer, or None; whatever else it does is its fault.

    method: a `Method` or a `BlockMethod`, with its config
    """
    found: object = call(method.name, where, lambda: method.problem(shape, config), {})
    if found is not None and not isinstance(found, str):
        what = f"`problem` gave {found!r} where a text or None is expected"
        raise _broken(method.name, where, what)
    return found


def is_plugin(method: str) -> bool:
    """Whether a method comes from another package."""
    return any(found.distribution != OURS for found in registry.owners(method))


def owner(method: str) -> str:
    """'my-methods 0.1'."""
    return " and ".join(map(str, registry.owners(method))) or "no distribution"


def _broken(method: str, where: str, what: str) -> PluginError:
    return PluginError(f"{where}: method '{method}' of {owner(method)} {what}.")


def _check_type(method: str, where: str, made: object) -> None:
    if not kinds.is_weight(made):
        known = (
            "Dense, Quantized, Coded, RowCoded, Nested, VectorCoded, SignSum, Sparse, "
            "WithOutliers, Adapted"
        )
        what = f"gave a {type(made).__name__} where one of {known} is expected"
        raise _broken(method, where, what)
    # Formats refuse what is not finite when they are made; only what they decode to still can be.
    if not bool(torch.isfinite(made.dequantize()).all()):
        raise _broken(method, where, "gave a weight that decodes to NaN or infinity in float32")


def _check_details(method: str, where: str, details: object) -> None:
    if not isinstance(details, Mapping):
        kind = type(details).__name__
        raise _broken(method, where, f"told its details as a {kind} instead of a mapping")
    for key, value in details.items():
        plain = isinstance(value, (int, str)) or (isinstance(value, float) and math.isfinite(value))
        if not isinstance(key, str) or not plain:
            what = f"told {key!r}: {value!r}; details are texts and finite numbers under texts"
            raise _broken(method, where, what)


def _own_kind(error: TrinityError) -> type[TrinityError]:
    """The kind of an error that is ours: a plugin's own may take other arguments."""
    kinds = (kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    found: type[TrinityError] = next(kinds)
    return found


def _tensors(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    """Tensors inside of what a method is given, each with its place in words."""
    if isinstance(value, Tensor):
        if not value.is_inference():  # those count no changes
            yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(f"{name}[{key}]" if name else str(key), item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(f"{name}[{index}]", item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(f"{name}.{field.name}", getattr(value, field.name))


def _shown(names: set[str]) -> str:
    """'a, b, c and 4 more'."""
    ordered = sorted(map(str, names))
    more = len(ordered) - NAMES_SHOWN
    return ", ".join(ordered[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
