"""A model whose residual stream is turned: what becomes of each of its tensors as it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trinity.harness.models.families import Family, FoldSpec, StreamSpec

Change = Callable[[Tensor], Tensor]


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
class Unscaled:
    """A norm whose scale was folded into what reads it.  offset: of norms that multiply by 1 + w"""

    offset: float

    def __call__(self, tensor: Tensor) -> Tensor:
        """All ones, or what stands for them."""
        return torch.full_like(tensor, 1 - self.offset)


def changes(
    model: Any, family: Family, rotation: Tensor, read: Callable[[str], Tensor]
) -> dict[str, Change]:
    """What to do to each tensor of a model that reads or writes the stream, by full name.

    model: a causal language model of transformers, which has no type for it
    rotation: [width, width]   read: a tensor by name, as the files have it
    """
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
