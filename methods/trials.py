"""One try of a method: run it, run it again, and look at what it gave and at what it was given.

For `conformance`, which says what to try.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trinity.methods.contract import MethodConfig
from trinity.methods.declarations import Violation
from trinity.methods.errors import ConfigError, TrinityError
from trinity.methods.formats import (
    CompressedWeight,
    bits_per_weight,
    format_of,
    kinds,
    pack,
    unpack,
)
from trinity.methods.rotations import ORTHOGONAL, RotationMethod
from trinity.methods.transforms import Fold, Scaled

MAX_BITS = 64.0  # twice what plain float32 takes
WIDTHS = (64, 96, 100, 576)  # of streams
Run = Callable[[], Mapping[str, CompressedWeight]]


def run_violations(
    run: Run,
    inputs: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, int]] | None,
    where: str,
    *,
    must_refuse: bool = False,
    may_refuse: bool = False,
) -> tuple[list[Violation], Mapping[str, CompressedWeight] | None]:
    """Run twice and once more on a foreign default device; look at results and at inputs.

    -> violations, and the result if there is one without
    """
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    torch.manual_seed(1)
    first = called(run)
    if may_refuse and _is_clear(first, ConfigError if must_refuse else TrinityError):
        return [], None
    if isinstance(first, BaseException):
        return [Violation(f"raised {type(first).__name__}: {first}", where)], None
    if must_refuse:
        said = "`problem` reports one, but the layer was compressed; raise ConfigError"
        return [Violation(said, where)], None
    found = _result_violations(first, shapes, where)
    found += [
        Violation(f"changed its input {name}", where)
        for name, tensor in inputs.items()
        if not torch.equal(tensor, before[name])
    ]
    if found:
        return found, None
    torch.manual_seed(2)
    again = called(run)
    if isinstance(again, BaseException) or not _same_bytes(first, again):
        what = (
            "the same inputs gave another result; take a seed in the config instead of the global "
            "generator"
        )
        found.append(Violation(what, where))
    with torch.device("meta"):
        elsewhere = called(run)
    if isinstance(elsewhere, BaseException) or not _same_bytes(first, elsewhere):
        found.append(Violation("makes tensors on the default device instead of `W.device`", where))
    return found, None if found else first


def _is_clear(result: object, kind: type[TrinityError]) -> bool:
    """Whether it is an error of a kind that the method itself raised on purpose."""
    # The formats refuse NaN too: a method that computes one has not said what is wrong.
    return isinstance(result, kind) and "holds NaN or infinity" not in str(result)


def _result_violations(
    result: object, shapes: Mapping[str, tuple[int, int]] | None, where: str
) -> list[Violation]:
    if not isinstance(result, Mapping):
        what = f"gave a {type(result).__name__}, expected a mapping of compressed weights"
        return [Violation(what, where)]
    if shapes is not None and set(result) != set(shapes):
        return [Violation(f"gave weights for {sorted(result)}, expected {sorted(shapes)}", where)]
    found = []
    for name, weight in result.items():
        if not kinds.is_weight(weight):
            found.append(
                Violation(
                    f"{name} is of type {type(weight).__name__}, not a CompressedWeight", where
                )
            )
            continue
        if shapes is not None and weight.shape != shapes[name]:
            found.append(Violation(f"{name} has shape {list(weight.shape)}", where))
        if not bool(torch.isfinite(weight.dequantize()).all()):
            found.append(Violation(f"{name} decodes to NaN or infinity", where))
        if not _same_bytes({name: weight}, {name: unpack(format_of(weight), pack(weight))}):
            found.append(Violation(f"{name} is another weight after it was stored and read", where))
        if bits_per_weight(weight) > MAX_BITS and min(weight.shape) > 8:
            bits = bits_per_weight(weight)
            found.append(
                Violation(f"{name} takes {bits:.1f} bits per weight, more than {MAX_BITS}", where)
            )
    return found


def scale_violations(
    run: Callable[[], Mapping[Fold, Scaled]],
    inputs: Mapping[str, Tensor],
    widths: Mapping[Fold, int],
    where: str,
    *,
    must_refuse: bool = False,
) -> list[Violation]:
    """The same of a method that moves scales.  widths: channels of each fold that is offered"""
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    torch.manual_seed(1)
    first = called(run)
    if must_refuse and _is_clear(first, ConfigError):
        return []
    if must_refuse:
        said = "`problem` reports one, but the block was transformed; raise ConfigError"
        return [Violation(said, where)]
    if isinstance(first, BaseException):
        return [Violation(f"raised {type(first).__name__}: {first}", where)]
    found = _scales_wrong(first, widths, where)
    found += [
        Violation(f"changed its input {name}", where)
        for name, tensor in inputs.items()
        if not torch.equal(tensor, before[name])
    ]
    if found:
        return found
    torch.manual_seed(2)
    again = called(run)
    if isinstance(again, BaseException) or not _same_scales(first, again):
        found.append(Violation("the same inputs gave other scales", where))
    return found


def _scales_wrong(first: object, widths: Mapping[Fold, int], where: str) -> list[Violation]:
    if not isinstance(first, Mapping):
        what = f"gave a {type(first).__name__}, expected a mapping of folds to Scaled"
        return [Violation(what, where)]
    found = []
    for fold, scaled in first.items():
        if fold not in widths:
            found.append(Violation(f"gave a scale for {fold}, which it was not offered", where))
        elif not isinstance(scaled, Scaled) or scaled.scale.shape != (widths[fold],):
            what = f"gave no Scaled with a scale of {widths[fold]} channels for {fold.into}"
            found.append(Violation(what, where))
        elif not bool((torch.isfinite(scaled.scale) & (scaled.scale > 0)).all()):
            what = f"the scale for {fold.into} is not positive and finite everywhere"
            found.append(Violation(what, where))
    return found


def _same_scales(one: Mapping[Fold, Scaled], other: Mapping[Fold, Scaled]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[fold].scale, other[fold].scale) for fold in one
    )


def rotation_violations(
    method: RotationMethod[MethodConfig], config: MethodConfig
) -> list[Violation]:
    """What is wrong with the rotations of streams of some widths."""
    found, refused = [], dict[str, str]()
    for width in WIDTHS:
        where = f"a stream of {width} channels"
        problem = called(partial(method.problem, width, config))
        run = partial(method.rotation, width, config)
        if isinstance(problem, str):
            refused[where] = problem
            if not _is_clear(called(run), ConfigError):
                said = "`problem` reports one, but there is a rotation; raise ConfigError"
                found.append(Violation(said, where))
        elif problem is not None:
            found.append(Violation(f"problem: gave {problem!r}, expected a text or None", where))
        else:
            found += _rotation_wrong(run, width, where)
    if len(refused) == len(WIDTHS):
        reason = next(iter(refused.values()))
        found.append(Violation(f"nothing was tried: `problem` refuses every width ({reason})"))
    return found


def _rotation_wrong(run: Callable[[], object], width: int, where: str) -> list[Violation]:
    torch.manual_seed(1)
    first = called(run)
    if isinstance(first, BaseException):
        return [Violation(f"raised {type(first).__name__}: {first}", where)]
    if not isinstance(first, Tensor) or first.shape != (width, width):
        return [Violation("gave no matrix of that many rows and columns", where)]
    off = (first.double().T @ first.double() - torch.eye(width, dtype=torch.float64)).abs().max()
    if not bool(off <= ORTHOGONAL):
        return [Violation("gave a matrix that is not orthogonal", where)]
    torch.manual_seed(2)
    again = called(run)
    if not isinstance(again, Tensor) or not torch.equal(first, again):
        what = "gave another matrix; take a seed in the config instead of the global generator"
        return [Violation(what, where)]
    return []


def called(run: Callable[[], Any]) -> Any:
    """The result, or the exception: a plugin may return and raise anything, hence Any."""
    try:
        return run()
    except (Exception, SystemExit) as error:
        return error


def _same_bytes(one: Mapping[str, CompressedWeight], other: Mapping[str, CompressedWeight]) -> bool:
    if one.keys() != other.keys():
        return False
    for name, weight in one.items():
        ours, theirs = pack(weight), pack(other[name])
        if format_of(weight) != format_of(other[name]) or ours.keys() != theirs.keys():
            return False
        for key, tensor in ours.items():
            if tensor.device != theirs[key].device or not torch.equal(tensor, theirs[key]):
                return False
    return True
