"""GPTQ (Frantar et al., arXiv:2210.17323) on tables of levels: NF4, MXFP4, NVFP4 and FP8.

The error feedback is that of `gptq`; what a column is rounded to is the nearest level of the table
under the scale of its group.  Scales are those of the methods `nf4`, `mxfp4`, `nvfp4` and `fp8`
with their defaults, fitted to the original weights before any is moved (`group_fit: static` of
`gptq`): NVFP4's float32 needs the whole tensor, so groups cannot be fitted on the way.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from trinity.methods import fp8, mxfp4, nf4, nvfp4
from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Coded, CompressedWeight, Dense, Sparse
from trinity.methods.formats.level_tables import levels, nearest_codes
from trinity.methods.solve import FeedbackConfig, factor, panel_width
from trinity.methods.sparsegpt import columns, settle_rounded
from trinity.methods.tensors import requantized, unquantized

NEAREST: Mapping[str, Callable[[Tensor], Coded]] = {
    "nf4": lambda W: nf4.compress(W, nf4.Nf4Config()),
    "mxfp4": mxfp4.compress,
    "nvfp4": nvfp4.compress,
    "fp8": lambda W: fp8.compress(W, fp8.Fp8Config()),
}
"""Round to nearest, whose scales are kept."""


class GptqCodebookConfig(FeedbackConfig):
    """Defaults are the paper's.

    values: what weights are rounded to, as the method of this name does it
    act_order: settle inputs by falling diag(H)
    target: what the outputs are to stay close to: those of the 'current' weight (a chain of
        published steps) or of the 'original' one, which also makes up for an earlier pruning
    """

    values: Literal["nf4", "mxfp4", "nvfp4", "fp8"] = "nf4"
    act_order: bool = False
    target: Literal["current", "original"] = "current"


class CodebookGrid:
    """The levels that a layer's columns are rounded to, and the codes of those that are settled."""

    def __init__(self, start: Coded, order: Tensor | None, precision: torch.dtype) -> None:
        """start: [out, in], whose scales are kept   order: int64 [in], the input at each place"""
        out, d_in = start.shape
        self.start, self.order = start, order
        self.scale = start.scales().T.to(precision).contiguous()
        self.levels = levels(start.table).to(start.codes.device, precision)
        self.codes = torch.empty(d_in, out, dtype=torch.uint8, device=start.codes.device)
        places = torch.arange(d_in, device=start.codes.device)
        self.group_of = (places if order is None else order) // (d_in // len(self.scale))
        self._groups: list[int] = self.group_of.tolist()

    def enter(self, place: int, rows: Tensor) -> None:
        """Nothing: scales were fitted before."""

    def round(self, place: int, weight: Tensor, code: Tensor) -> Tensor:
        """The scale of a column; `code` becomes the nearest level.

        weight, code: [out]  ->  [out] or [1]
        """
        scale = self.scale[self._groups[place]]
        code.copy_(self.levels[self._nearest(weight / scale).int()])
        return scale

    def keep(self, place: int, code: Tensor) -> Tensor:
        """Store the codes of a settled panel.  code: [size, out], levels  ->  the values"""
        self.codes[place : place + len(code)] = self._nearest(code)
        return code * self.scale.index_select(0, self.group_of[place : place + len(code)])

    def result(self) -> Coded:
        """The layer, inputs in its order."""
        codes, start = self.codes, self.start
        if self.order is not None:
            codes = torch.empty_like(codes).index_copy_(0, self.order, codes)
        return Coded(codes.T.contiguous(), start.scale, start.table, start.outer_scale)

    def _nearest(self, levels: Tensor) -> Tensor:
        return nearest_codes(levels.float(), self.start.table)


def problem(shape: tuple[int, int], config: GptqCodebookConfig) -> str | None:
    """Why a layer [out, in] cannot be compressed, or None."""
    match config.values:
        case "nf4":
            return nf4.NF4.problem(shape, nf4.Nf4Config())
        case "mxfp4":
            return mxfp4.MXFP4.problem(shape, mxfp4.Mxfp4Config())
        case "nvfp4":
            return nvfp4.NVFP4.problem(shape, nvfp4.Nvfp4Config())
        case "fp8":
            return fp8.FP8.problem(shape, fp8.Fp8Config())


def compress(
    W: Tensor, current: Dense | Sparse, stats: LayerStats, config: GptqCodebookConfig
) -> Coded:
    """Quantize.  W: [out, in], the original weight"""
    sizes = (1,)
    found = factor(
        stats, config, panel_width(sizes), act_order=config.act_order, method="gptq-codebook"
    )
    weights = columns(W if config.target == "original" else current.dequantize(), found)
    grid = CodebookGrid(NEAREST[config.values](weights.T), found.order, weights.dtype)
    settle_rounded(weights, current, found, grid, sizes)
    return grid.result()


class _GptqCodebook:
    name = "gptq-codebook"
    paper = "arXiv:2210.17323"
    config = GptqCodebookConfig
    needs = Statistic.HESSIAN

    def problem(self, shape: tuple[int, int], config: GptqCodebookConfig) -> str | None:
        return problem(shape, config)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: GptqCodebookConfig
    ) -> CompressedWeight:
        if found := problem(current.shape, config):
            raise ConfigError(f"gptq-codebook: {found}.")
        floats = unquantized(current, "gptq-codebook")
        return requantized(floats, compress(W, floats, stats, config), "gptq-codebook")


GPTQ_CODEBOOK = _GptqCodebook()
