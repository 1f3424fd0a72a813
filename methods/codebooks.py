"""What methods share that round to published tables of levels: groups, scales, and how they fit."""

from typing import Literal

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats import Coded
from trinity.methods.formats.codebook import coded
from trinity.methods.formats.level_tables import largest
from trinity.methods.options import FloatName, GroupSize, cast

E4M3, E4M3_LEAST = torch.float8_e4m3fn, 2.0**-9
ScaleType = FloatName | Literal["float8"]
"""`float8`: E4M3, and one float32 for the tensor that multiplies all of them."""


def groups_problem(shape: tuple[int, int], size: GroupSize) -> str | None:
    """Why groups of consecutive inputs do not fit a layer [out, in], or None."""
    if isinstance(size, int) and shape[1] % size:
        return f"groups of {size} inputs do not divide in = {shape[1]}"
    return None


def group_largest(W: Tensor, size: GroupSize, method: str) -> Tensor:
    """The largest magnitude of each group.  W: [out, in]  ->  float32 [1 | out, groups]

    ConfigError where the groups do not fit.
    """
    out, d_in = W.shape
    if found := groups_problem((out, d_in), size):
        raise ConfigError(f"{method}: {found}.")
    if size == "tensor":
        return W.float().abs().amax().view(1, 1)
    inputs = d_in if size == "channel" else size
    return W.float().abs().reshape(out, -1, inputs).amax(-1)


def top_scale(most: Tensor, table: str) -> Tensor:
    """What makes a group's largest magnitude the table's largest level; 1 for a group of zeros.

    most: float32 [1 | out, groups]  ->  the same
    """
    return torch.where(most > 0, most / largest(table), 1.0)


def stored_scale(scale: Tensor, kind: ScaleType) -> tuple[Tensor, Tensor | None]:
    """Scales as they are stored, and what multiplies all of them if something does.

    scale: float32 [1 | out, groups], positive
    """
    if kind != "float8":
        return cast(scale, kind), None
    return two_level(scale)


def two_level(scale: Tensor) -> tuple[Tensor, Tensor]:
    """E4M3 under one float32: the largest scale becomes E4M3's largest number, 448.

    A scale that E4M3 would round to zero becomes its smallest number: scales are positive.
    scale: float32 [1 | out, groups]  ->  float8_e4m3fn, the same shape, and float32 [1, 1]
    """
    top = torch.finfo(E4M3).max
    outer = (scale.amax() / top).view(1, 1)
    return (scale / outer).clamp(E4M3_LEAST, top).to(E4M3), outer


def rounded(W: Tensor, table: str, scale: Tensor, outer: Tensor | None) -> Coded:
    """The nearest levels under given scales.  W: [out, in]"""
    scales = scale.float() if outer is None else scale.float() * outer
    return Coded(coded(W, scales, table), scale, table, outer)
