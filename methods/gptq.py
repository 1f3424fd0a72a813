"""GPTQ: quantize with error feedback (Frantar et al., arXiv:2210.17323), also called OPTQ.

Differs from the published code: the same update is computed with one factorization and large
products (`methods/solve.py`); the grid's differences are in `methods/grids.py`; what dead inputs
read is cleared before any grid is fitted, not after the first.
A weight that is pruned already keeps its mask: pruned entries are stored as zero, and their errors
are fed back like the others.
"""

from typing import Literal

from torch import Tensor

from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense, Quantized, Sparse
from trinity.methods.grids import ColumnGrid, GridConfig, fit_unit, grid_problem
from trinity.methods.options import Bits
from trinity.methods.solve import FeedbackConfig, factor, panel_width
from trinity.methods.sparsegpt import columns, settle_rounded
from trinity.methods.tensors import requantized, unquantized


class GptqConfig(GridConfig, FeedbackConfig):
    """Defaults are the paper's, with its groups of 128.

    act_order: settle inputs by falling diag(H); with groups that are fitted on the way this needs
        a group index for every input, which compiled modules refuse: `group_fit: static` does not
    target: what the outputs are to stay close to: those of the 'current' weight (a chain of
        published steps) or of the 'original' one, which also makes up for an earlier pruning
    """

    bits: Bits = 4
    act_order: bool = False
    target: Literal["current", "original"] = "current"


def units(shape: tuple[int, int], config: GptqConfig) -> tuple[int, ...]:
    """Sizes of the runs of columns whose grids are fitted together, descending."""
    return (fit_unit(shape, config, config.block_size) or 1,)


def problem(shape: tuple[int, int], config: GptqConfig) -> str | None:
    """Why a layer [out, in] cannot be compressed, or None."""
    return grid_problem(shape, config, config.block_size)


def compress(
    W: Tensor, current: Dense | Sparse, stats: LayerStats, config: GptqConfig
) -> Quantized:
    """Quantize.  W: [out, in], the original weight"""
    sizes = units(current.shape, config)
    found = factor(stats, config, panel_width(sizes), act_order=config.act_order, method="gptq")
    weights = columns(W if config.target == "original" else current.dequantize(), found)
    unit = fit_unit(current.shape, config, config.block_size)
    grid = ColumnGrid(weights, found.order, config, config.bits, unit)
    settle_rounded(weights, current, found, grid, sizes)
    return grid.result()


class _Gptq:
    name = "gptq"
    paper = "arXiv:2210.17323"
    config = GptqConfig
    needs = Statistic.HESSIAN

    def problem(self, shape: tuple[int, int], config: GptqConfig) -> str | None:
        return problem(shape, config)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: GptqConfig
    ) -> CompressedWeight:
        if found := problem(current.shape, config):
            raise ConfigError(f"gptq: {found}.")
        floats = unquantized(current, "gptq")
        return requantized(floats, compress(W, floats, stats, config), "gptq")


GPTQ = _Gptq()
