"""SparseGPT: prune with weight updates (Frantar & Alistarh, arXiv:2301.00774).

Differs from the published code: the same update is computed with one factorization and large
products (`methods/solve.py`); a block loses exactly floor(sparsity * weights), where the code's
`<=` takes one more, and ties keep the lower input; `pattern: 0%` changes nothing, where the code
prunes one weight a block.

With `bits`, what is kept is quantized in the same sweep ("SparseGPT + OPTQ").
"""

import re
from typing import Annotated, Any, Protocol

import torch
from pydantic import BeforeValidator, PlainSerializer, model_validator
from torch import Tensor

from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, CompressedWeight, Dense, Pattern, Quantized, Sparse
from trinity.methods.grids import ColumnGrid, GridConfig, fit_unit, grid_problem, nesting_problem
from trinity.methods.options import Bits, GroupSize, PatternOption
from trinity.methods.solve import (
    Factor,
    FeedbackConfig,
    factor,
    panel_width,
    settle_columns,
)
from trinity.methods.tensors import highest_kept, lowest_removed, pattern_problem

NO_PATTERN = "0%"
ZERO = re.compile(r"\s*0+(\.0+)?%\s*")


def _read_zero(value: Any) -> Any:
    """Pydantic hands over whatever the recipe holds, hence Any."""
    return None if isinstance(value, str) and ZERO.fullmatch(value) else value


SparsityOption = Annotated[
    PatternOption | None,
    BeforeValidator(_read_zero),
    PlainSerializer(lambda value: NO_PATTERN if value is None else str(value), return_type=str),
]


class SparseGptConfig(GridConfig, FeedbackConfig):
    """Defaults are the paper's.

    pattern: N:M, or an unstructured sparsity that every block of columns reaches; '0%' is none
    bits: quantize what is kept to so many bits; the grid's options then apply.  As in the code,
        the default grid is one per row, asymmetric, fitted to the dense row
    """

    pattern: SparsityOption
    bits: Bits | None = None
    group_size: GroupSize = "channel"

    @model_validator(mode="after")
    def _grid_needs_bits(self) -> "SparseGptConfig":
        changed = [
            name
            for name in GridConfig.model_fields
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if self.bits is None and changed:
            msg = f"{', '.join(changed)} has no effect without `bits`"
            raise ValueError(msg)
        return self


def units(shape: tuple[int, int], config: SparseGptConfig) -> tuple[int, ...]:
    """Sizes of the runs of columns that something is decided for together, descending."""
    found = {1}
    if isinstance(config.pattern, NM):
        found.add(config.pattern.m)
    elif config.pattern is not None:
        found.add(config.block_size)
    if config.bits is not None and (unit := fit_unit(shape, config, config.block_size)):
        found.add(unit)
    return tuple(sorted(found - {1} or {1}, reverse=True))


def problem(shape: tuple[int, int], config: SparseGptConfig) -> str | None:
    """Why a layer [out, in] cannot be compressed, or None."""
    if config.pattern is not None and (found := pattern_problem(shape, config.pattern)):
        return found
    if config.bits is not None and (found := grid_problem(shape, config, config.block_size)):
        return found
    return nesting_problem(units(shape, config))


class Pruner:
    """Chooses the mask, block by block or group by group.  A `Rule` of `methods.solve`."""

    def __init__(self, weights: Tensor, sizes: tuple[int, ...], config: SparseGptConfig) -> None:
        """weights: [in, out]"""
        assert config.pattern is not None
        self.units, self.pattern, self.block = sizes, config.pattern, config.block_size
        self.kept = torch.empty(weights.shape, dtype=torch.bool, device=weights.device)
        self.removed = torch.empty_like(weights[: panel_width(sizes)])  # 1 where pruned
        self.width = panel_width(sizes)

    def enter(self, place: int, rows: Tensor, strength: Tensor) -> None:
        """Choose the mask of the columns that start here."""
        run = self.pattern.m if isinstance(self.pattern, NM) else self.block
        if place % run:
            return
        run = min(run, len(rows))
        kept = choose(rows[:run], strength[:run], self.pattern)
        self.kept[place : place + run] = kept
        first = place % self.width
        torch.logical_not(kept, out=self.removed[first : first + run])

    def settle(self, place: int, weight: Tensor, error: Tensor) -> None:
        """A removed weight is its own error."""
        torch.mul(weight, self.removed[place % self.width], out=error)

    def leave(self, place: int, rows: Tensor) -> None:
        """Clear what was removed."""
        rows.mul_(self.kept[place : place + len(rows)])


class SettledGrid(Protocol):
    """What columns are rounded to while they are settled.

    scale: [groups, out | 1], of the sweep's precision   codes: [in, out], of the columns settled
    """

    scale: Tensor
    codes: Tensor

    def enter(self, place: int, rows: Tensor) -> None:
        """Fit the groups that start here, if it is time.  rows: [places from here, out]"""

    def round(self, place: int, weight: Tensor, code: Tensor) -> Tensor:
        """The scale of a column; `code` becomes what it multiplies.  weight, code: [out]"""

    def keep(self, place: int, code: Tensor) -> Tensor:
        """Store the codes of a settled panel.  code: [size, out]  ->  the values they stand for"""


class Rounder:
    """Rounds to a grid, under a mask if there is one.  A `Rule` of `methods.solve`."""

    def __init__(self, grid: SettledGrid, sizes: tuple[int, ...], mask: Pruner | Tensor | None):
        """mask: chosen on the way, or given: bool [in, out] in the order of settling, True keeps"""
        self.grid, self.units, self.width = grid, sizes, panel_width(sizes)
        self.pruner = mask if isinstance(mask, Pruner) else None
        self.kept = mask.kept if isinstance(mask, Pruner) else mask
        out = grid.codes.shape[1]
        rows = min(self.width, len(grid.codes))
        self.code = torch.empty(rows, out, dtype=grid.scale.dtype, device=grid.scale.device)

    def enter(self, place: int, rows: Tensor, strength: Tensor) -> None:
        """Choose masks, then fit grids, of what starts here."""
        if self.pruner is not None:
            self.pruner.enter(place, rows, strength)
        self.grid.enter(place, rows)

    def settle(self, place: int, weight: Tensor, error: Tensor) -> None:
        """The nearest code, or none where the mask removes."""
        code = self.code[place % self.width]
        scale = self.grid.round(place, weight, code)
        if self.kept is not None:
            code.mul_(self.kept[place])
        torch.addcmul(weight, code, scale, value=-1, out=error)

    def leave(self, place: int, rows: Tensor) -> None:
        """Store the panel's codes."""
        rows.copy_(self.grid.keep(place, self.code[: len(rows)]))


def choose(weights: Tensor, strength: Tensor, pattern: Pattern) -> Tensor:
    """Keep the columns' weights whose removal would cost most: w^2 / U_jj^2 (eq. 3).

    weights: [columns, out], one group of N:M or one block   strength: [columns], 1 / U_jj
    ->  bool [columns, out]
    """
    scores = (weights * strength[:, None]).abs_()
    if isinstance(pattern, NM):
        return highest_kept(scores, pattern.n)
    flat = scores.view(1, -1)
    return lowest_removed(flat, int(flat.shape[1] * pattern.sparsity)).view_as(scores)


def compress(
    current: Dense, stats: LayerStats, config: SparseGptConfig
) -> Dense | Quantized | Sparse:
    """Prune, quantize, or both.  current: [out, in]"""
    if config.pattern is None and config.bits is None:
        return current
    sizes = units(current.shape, config)
    found = factor(stats, config, panel_width(sizes), act_order=False, method="sparsegpt")
    weights = columns(current.dequantize(), found)
    pruner = Pruner(weights, sizes, config) if config.pattern is not None else None
    if config.bits is not None:
        unit = fit_unit(current.shape, config, config.block_size)
        grid = ColumnGrid(weights, None, config, config.bits, unit)
        settle_columns(weights, found, Rounder(grid, sizes, pruner))
        values: Dense | Quantized = grid.result()
    else:
        assert pruner is not None
        settle_columns(weights, found, pruner)
        values = Dense(weights.T.to(current.values.dtype).contiguous())
    del weights  # the format makes copies of its own
    if pruner is None or config.pattern is None:
        return values
    return Sparse(values, pruner.kept.T.contiguous(), config.pattern)


def columns(W: Tensor, found: Factor) -> Tensor:
    """W of the factor's precision, a column a row, without what only dead inputs would read.

    W: [out, in]  ->  [in, out], in the layer's order
    """
    weights = W.T.to(found.before.dtype, copy=True, memory_format=torch.contiguous_format)
    return weights.masked_fill_(found.dead[:, None], 0)


def settle_rounded(
    weights: Tensor,
    current: Dense | Sparse,
    found: Factor,
    grid: SettledGrid,
    sizes: tuple[int, ...],
    pull: Tensor | None = None,
) -> None:
    """Round every column in turn, as GPTQ does; what `current` pruned stays pruned.

    weights: [in, out], in the layer's order   grid: receives the codes, in the factor's order
    sizes: see `Rule.units`   pull: see `settle_columns`, in the factor's order
    """
    mask = current.mask.T.contiguous() if isinstance(current, Sparse) else None
    if found.order is not None:
        weights = weights.index_select(0, found.order)
        mask = None if mask is None else mask.index_select(0, found.order)
    settle_columns(weights, found, Rounder(grid, sizes, mask), pull)


class _SparseGpt:
    name = "sparsegpt"
    paper = "arXiv:2301.00774"
    config = SparseGptConfig
    needs = Statistic.HESSIAN

    def problem(self, shape: tuple[int, int], config: SparseGptConfig) -> str | None:
        return problem(shape, config)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: SparseGptConfig
    ) -> CompressedWeight:
        if not isinstance(current, Dense):
            msg = (
                f"sparsegpt: an earlier step already made this weight "
                f"{type(current).__name__.lower()}, and pruning moves the weights that are kept. "
                f"Prune first; to quantize as well, set `bits`, or add a gptq step after it."
            )
            raise ConfigError(msg)
        if found := problem(current.shape, config):
            raise ConfigError(f"sparsegpt: {found}.")
        return compress(current, stats, config)


SPARSEGPT = _SparseGpt()
