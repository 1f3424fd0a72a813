"""A model whose residual stream is turned: what becomes of each of its tensors as it is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trinity.harness.models.families import Family, FoldSpec, StreamSpec
from trinity.methods.formats import InputFormat, hadamard

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Rotation:
    """What is turned of a model.

    stream: Q, [width, width], float32
    inputs: of linears, by name; those of them that are turned are it as the model runs
    """

    stream: Tensor
    inputs: Mapping[str, InputFormat] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Turned:
    """(tensor * gain) times a rotation, along one axis.

    rotation: [width, width], float32   gain: gives the scale [width] of the norm that is folded in
    """

    rotation: Tensor
    axis: int
    gain: Callable[[], Tensor] | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        """In float32; the same type comes back."""
        rows = tensor.float().movedim(self.axis, -1)
        if self.gain is not None:
            rows = rows * self.gain()
        turned = rows @ self.rotation.to(tensor.device)
        return turned.movedim(-1, self.axis).to(tensor.dtype).contiguous()


@dataclass(frozen=True)
class OfTurnedInputs:
    """A weight [out, in] whose inputs are turned as the model runs: the inverse is folded in.

    first: what else becomes of it   size: of the Hadamard matrix
    """

    first: Change
    size: int

    def __call__(self, tensor: Tensor) -> Tensor:
        """W H, for inputs x H."""
        weight = self.first(tensor)
        return hadamard.turned(weight.float(), self.size).to(weight.dtype)


@dataclass(frozen=True)
class Unscaled:
    """A norm whose scale was folded into what reads it.  offset: of norms that multiply by 1 + w"""

    offset: float

    def __call__(self, tensor: Tensor) -> Tensor:
        """All ones, or what stands for them."""
        return torch.full_like(tensor, 1 - self.offset)


def change_inputs(model: nn.Module, inputs: Mapping[str, InputFormat | None]) -> None:
    """From now on, do to the inputs of some linears what is declared, before every product."""
    for name, of in inputs.items():
        if of is not None:
            model.get_submodule(name).register_forward_pre_hook(_changed(of))


def _changed(inputs: InputFormat) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def change_first(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs.rounded(args[0]), *args[1:])

    return change_first


def turn(
    model: Any, family: Family, rotation: Rotation, read: Callable[[str], Tensor]
) -> dict[str, Change]:
    """What to do to each tensor of a model that reads or writes the stream, by full name.

    From now on the model turns inputs as the rotation says.
    model: a causal language model of transformers, which has no type for it
    read: a tensor by name, as the files have it
    """
    change_inputs(model, {name: of.unrounded for name, of in rotation.inputs.items()})
    found = _changes(model, family, rotation.stream, read)
    for name, of in rotation.inputs.items():
        if of.turned:
            found[f"{name}.weight"] = OfTurnedInputs(found[f"{name}.weight"], of.turned)
    return found


def _changes(
    model: Any, family: Family, rotation: Tensor, read: Callable[[str], Tensor]
) -> dict[str, Change]:
    stream = family.stream
    assert stream is not None
    found: dict[str, Change] = {}

    def reads(norm: str, offset: float, linears: list[str]) -> None:
        def gain() -> Tensor:
            return read(f"{norm}.weight").float() + offset

        found[f"{norm}.weight"] = Unscaled(offset)
        found.update({f"{name}.weight": Turned(rotation, 1, gain) for name in linears})

    names = {module: name for name, module in model.named_modules()}
    found[f"{names[model.get_input_embeddings()]}.weight"] = Turned(rotation, 1)
    reads(stream.norm, stream.offset, [names[model.get_output_embeddings()]])
    for index in range(len(model.get_submodule(family.blocks))):
        prefix = f"{family.blocks}.{index}."
        for spec, group in _through_norms(family):
            reads(prefix + spec.into, spec.offset, [prefix + name for name in group])
        found |= _writes(model, stream, prefix, rotation)
    return found


def _through_norms(family: Family) -> list[tuple[FoldSpec, tuple[str, ...]]]:
    """The norms of a block that make the inputs of a group of linears, each with these."""
    linears = {name for group in family.groups for name in group}
    return [
        (spec, group)
        for group in family.groups
        for spec in family.folds
        if spec.reads in group and spec.into not in linears
    ]


def _writes(model: Any, stream: StreamSpec, prefix: str, rotation: Tensor) -> dict[str, Change]:
    """Of the linears of a block whose outputs are added to the stream."""
    found: dict[str, Change] = {}
    for name in stream.writes:
        found[f"{prefix}{name}.weight"] = Turned(rotation, 0)
        if model.get_submodule(prefix + name).bias is not None:
            found[f"{prefix}{name}.bias"] = Turned(rotation, 0)
    return found
