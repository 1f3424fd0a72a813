"""Uniform grids that are fitted while a layer's inputs are settled: GPTQ's quantizer.

The grid is that of GPTQ's code (arXiv:2210.17323, quant.py).  Differs from it: the scale is rounded
to its stored type before codes are computed; the symmetric range is -max|w| .. max|w| also where no
weight is negative (the code then keeps half of the codes for values that do not occur and clips
the largest weights by half).
"""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from trinity.methods.contract import MethodConfig
from trinity.methods.formats import Quantized
from trinity.methods.options import FloatName, GroupSize, cast

GroupFit = Literal["reference", "compensated", "static"]
SHRINK_STEPS, SHRINK_BY, NORM = 80, 0.01, 2.4  # of the code's search


class GridConfig(MethodConfig):
    """Options of a grid.

    group_size: inputs that share one scale, or 'channel' (one a row), or 'tensor'
    symmetric: no zero point   scale_dtype: type in which scales are stored
    search: 'minmax', or 'mse': the code's search of a narrower range
    group_fit: which weights a group's grid is fitted to when the sweep reaches the group.
        'reference': those moved by the errors of earlier blocks of `block_size` columns, as in the
        code, which works on a copy of the block; 'compensated': those moved by all errors so far;
        'static': the original ones, of all groups before anything is moved
    ragged: a layer whose `in` is no multiple of the group: refuse it, or quantize it by channel
    """

    group_size: GroupSize = 128
    symmetric: bool = False
    scale_dtype: FloatName = "float16"
    search: Literal["minmax", "mse"] = "minmax"
    group_fit: GroupFit = "reference"
    ragged: Literal["refuse", "channel"] = "refuse"


def group_inputs(shape: tuple[int, int], config: GridConfig) -> int | None:
    """Inputs of one group of a layer [out, in]; None where a row or the tensor is one group."""
    size = config.group_size
    if isinstance(size, str) or shape[1] % size:
        return None
    return size


def grid_problem(shape: tuple[int, int], config: GridConfig, block_size: int) -> str | None:
    """Why the groups do not fit a layer [out, in] or the blocks, or None."""
    size = config.group_size
    if isinstance(size, int) and shape[1] % size and config.ragged == "refuse":
        return (
            f"group_size {size} does not divide in = {shape[1]} (choose a divisor, or set "
            f"`ragged: channel` to quantize such layers per channel)"
        )
    if config.group_fit == "reference" and group_inputs(shape, config):
        return nesting_problem((int(size), block_size))
    return None


def nesting_problem(sizes: tuple[int, ...]) -> str | None:
    """Why runs of columns of these sizes cannot be settled together, or None."""
    ordered = sorted(sizes, reverse=True)
    for larger, smaller in pairwise(ordered):
        if larger % smaller:
            return (
                f"runs of {larger} and {smaller} columns do not nest (block_size, group_size, the "
                f"M of N:M): one must divide the other"
            )
    return None


def fit_unit(shape: tuple[int, int], config: GridConfig, block_size: int) -> int | None:
    """Columns whose groups are fitted together during the sweep; None if grids are fitted before.

    shape: [out, in]
    """
    size = group_inputs(shape, config)
    if size is None or config.group_fit == "static":
        return None
    return size if config.group_fit == "compensated" else max(size, block_size)


class ColumnGrid:
    """The grids of one layer, and the codes of the columns that are settled."""

    def __init__(
        self,
        weights: Tensor,
        order: Tensor | None,
        config: GridConfig,
        bits: int,
        unit: int | None,
    ) -> None:
        """weights: [in, out] in the layer's order, from which grids that do not move are fitted.

        order: int64 [in], the input at each place   unit: `fit_unit` of the layer
        """
        d_in, out = weights.shape
        self.config, self.bits, self.unit, self.order = config, bits, unit, order
        self.size = group_inputs((out, d_in), config) or d_in
        places = torch.arange(d_in, device=weights.device)
        inputs = places if unit or order is None else order
        self.group_of = inputs // self.size
        self._groups: list[int] = self.group_of.tolist()
        rows = 1 if config.group_size == "tensor" else out
        self.scale = weights.new_empty(d_in // self.size, rows)
        self.zero = None if config.symmetric else torch.empty_like(self.scale)
        half = 2 ** (bits - 1)
        self.low = torch.full_like(self.scale, -half)  # codes, less the zero point
        self.high = torch.full_like(self.scale, half - 1)
        self.codes = torch.empty(
            d_in, out, dtype=torch.int8 if config.symmetric else torch.uint8, device=weights.device
        )
        if unit is None:
            self._fit(0, weights)

    def enter(self, place: int, rows: Tensor) -> None:
        """Fit the groups that start here, if it is time.  rows: [places from here, out]"""
        if self.unit and place % self.unit == 0:
            self._fit(place // self.size, rows[: self.unit])

    def round(self, place: int, weight: Tensor, code: Tensor) -> Tensor:
        """The scale of a column; `code` becomes the nearest code less the zero point.

        weight, code: [out]  ->  [out] or [1]
        """
        group = self._groups[place]
        scale = self.scale[group]
        torch.div(weight, scale, out=code).round_()
        code.clamp_(self.low[group], self.high[group])
        return scale

    def keep(self, place: int, code: Tensor) -> Tensor:
        """Store the codes of a settled panel.  code: [size, out]  ->  the values they stand for"""
        groups = self.group_of[place : place + len(code)]
        values = code * self.scale.index_select(0, groups)
        raw = code if self.zero is None else code + self.zero.index_select(0, groups)
        self.codes[place : place + len(code)] = raw
        return values

    def result(self) -> Quantized:
        """The quantized layer, inputs in the layer's order."""
        codes, index = self.codes, None
        if self.order is not None:
            codes = torch.empty_like(self.codes).index_copy_(0, self.order, self.codes)
            if self.unit:
                groups = self.group_of.to(torch.int32)
                index = torch.empty_like(groups).index_copy_(0, self.order, groups)
        scale = cast(self.scale.T.contiguous(), self.config.scale_dtype)
        zero_point = None if self.zero is None else self.zero.T.contiguous().to(torch.uint8)
        return Quantized(codes.T.contiguous(), scale, zero_point, self.bits, index)

    def _fit(self, group: int, rows: Tensor) -> None:
        """Fit consecutive groups.  rows: [groups * size, out]"""
        if len(self.scale) == 1:
            group, values = 0, rows[None]
        else:
            values = rows.view(-1, self.size, rows.shape[1])
        for number, members in enumerate(values, group):
            scale, zero = self._fitted(members)
            self.scale[number] = scale
            if self.zero is not None:
                self.zero[number] = zero
                self.low[number] = -zero
                self.high[number] = 2**self.bits - 1 - zero

    def _fitted(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of one group.  members: [size, out]  ->  [out] or [1] each"""
        low, high = members.amin(0).clamp(max=0), members.amax(0).clamp(min=0)
        if self.config.group_size == "tensor":
            low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
        empty = high == low
        low, high = torch.where(empty, -1, low), torch.where(empty, 1, high)
        if self.config.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        best = self._grid(low, high)
        if self.config.search == "minmax":
            return best
        scale, zero = best
        least = self._loss(members, scale, zero)
        for step in range(1, SHRINK_STEPS):
            share = 1 - SHRINK_BY * step
            tried = self._grid(share * low, share * high)
            loss = self._loss(members, *tried)
            better = loss < least
            least = torch.where(better, loss, least)
            scale = torch.where(better, tried[0], scale)
            zero = torch.where(better, tried[1], zero)
        return scale, zero

    def _grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        top = 2**self.bits - 1
        scale = cast((high - low) / top, self.config.scale_dtype).to(low.dtype)
        if self.config.symmetric:
            return scale, torch.full_like(scale, 2 ** (self.bits - 1))
        return scale, torch.round(-low / scale).clamp(0, top)

    def _loss(self, members: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Sum of |Q(w) - w|^2.4 over what shares the scale.  -> [out] or [1]"""
        found = (members / scale).round_().clamp_(-zero, 2**self.bits - 1 - zero)
        losses = found.mul_(scale).sub_(members).abs_().pow_(NORM).sum(0)
        return losses if len(scale) == len(losses) else losses.sum(0, keepdim=True)
