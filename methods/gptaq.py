"""GPTAQ: GPTQ with asymmetric calibration (Li et al., arXiv:2504.02692).

GPTQ keeps the outputs of a layer close to what the layer itself gave on the inputs that it gets
after the compression before it.  GPTAQ keeps them close to what the layer gave in the model before
compression: with X [in, tokens] the inputs now, X~ those of the dense model and D = X~ - X,

    min |W^ X - W X~|^2  =  min |(W^ - W) X - W D|^2.

`residual: by-input` is the paper's: when input q is settled, the columns after it take over its
rounding error, as in GPTQ, and its share w_q D_q of the last term,

    W_:,l += w_q P_ql for l > q,     P = ((D X^T U^T) o M) U,     (H + damping)^-1 = U^T U,

U upper triangular and M strictly upper triangular ones.
`residual: whole` moves all columns at once by what minimizes the whole term, W D X^T H^-1, and then
goes on as GPTQ: the objective is the one above without the paper's splitting by input.

Differs from the published code:
- `share` 1 is the formula.  The code takes a quarter of P, which is the default here: it made the
  published numbers, and the whole of it destroyed the small model that we measured.
- A column's share is computed from its weight before it is rounded, as in the formula.  The code
  takes the rounded one for the columns beyond a block of 128.
- U is not computed: V = U^-1 is (`methods/solve.py`), and P follows by two triangular solves.
"""

from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from trinity.methods import gptq
from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense, Quantized, Sparse
from trinity.methods.grids import ColumnGrid, fit_unit
from trinity.methods.solve import (
    Factor,
    exact_products,
    factor,
    hessian,
    panel_width,
    turned_factor,
)
from trinity.methods.sparsegpt import columns, settle_rounded
from trinity.methods.tensors import requantized, unquantized


class GptaqConfig(gptq.GptqConfig):
    """GPTQ's options, and those of the second term.

    residual: how the difference between both models' inputs is made up for: `by-input` is the
        paper's, `whole` its closed form for all columns at once
    share: of this correction that is applied: 1 is the formula, 0.25 the code's, 0 is GPTQ
    """

    residual: Literal["by-input", "whole"] = "by-input"
    share: NonNegativeFloat = 0.25


def drift(stats: LayerStats) -> Tensor:
    """D X^T, scaled like H: [in, in]; ConfigError if it was not collected."""
    if stats.H_drift is None:
        msg = "gptaq: needs the inputs of both models; the recipe has no calibration data."
        raise ConfigError(msg)
    return stats.H_drift


def moves(stats: LayerStats, found: Factor, config: GptaqConfig) -> Tensor:
    """What each weight of a row adds to the others: share * P^T or share * (D X^T H^-1)^T.

    Made once for all layers with the same inputs.
    -> [in, in] in the order of settling; `by-input` is strictly lower triangular
    """
    options = (config.damping, config.precision, config.act_order, config.residual, config.share)

    def make() -> Tensor:
        turned = turned_factor(hessian(stats, "gptaq"), found.order, config)
        assert turned is not None, "`factor` has refused this"
        C = drift(stats).to(turned.dtype)
        if found.order is not None:
            C = C[found.order[:, None], found.order]
        with exact_products():
            made = _by_input(turned, C) if config.residual == "by-input" else _whole(turned, C)
        return made.mul_(config.share)

    return stats.shared(("gptaq", *options), make)


def _by_input(turned: Tensor, C: Tensor) -> Tensor:
    """P^T.  turned: V^T, lower triangular   C: D X^T"""
    # X V^T = C gives X = C U^T, and P V = X o M gives P.
    X = torch.linalg.solve_triangular(turned, C, upper=False, left=False).triu_(1)
    P: Tensor = torch.linalg.solve_triangular(turned.T, X, upper=True, left=False)
    return P.T.contiguous()


def _whole(turned: Tensor, C: Tensor) -> Tensor:
    """(C H^-1)^T = H^-1 C^T, where H = V V^T.  turned: V^T, lower triangular   C: D X^T"""
    half = torch.linalg.solve_triangular(turned.T, C.T, upper=True)
    made: Tensor = torch.linalg.solve_triangular(turned, half, upper=False)
    return made


def corrected(weights: Tensor, added: Tensor, order: Tensor | None) -> Tensor:
    """Weights with what each adds to all others.

    weights: [in, out], in the layer's order  ->  the same   added: [in, in], in order of settling
    """
    with exact_products():
        if order is None:
            return weights.addmm(added, weights)
        return weights.index_add(0, order, added @ weights[order])


def compress(
    W: Tensor, current: Dense | Sparse, stats: LayerStats, config: GptaqConfig
) -> Quantized:
    """Quantize.  W: [out, in], the original weight"""
    sizes = gptq.units(current.shape, config)
    found = factor(stats, config, panel_width(sizes), act_order=config.act_order, method="gptaq")
    weights = columns(W if config.target == "original" else current.dequantize(), found)
    added, pull = moves(stats, found, config), None
    if config.residual == "by-input":
        pull = added
    else:
        weights = corrected(weights, added, found.order)
    unit = fit_unit(current.shape, config, config.block_size)
    grid = ColumnGrid(weights, found.order, config, config.bits, unit)
    settle_rounded(weights, current, found, grid, sizes, pull)
    return grid.result()


class _Gptaq:
    name = "gptaq"
    paper = "arXiv:2504.02692"
    config = GptaqConfig
    needs = Statistic.HESSIAN | Statistic.DRIFT

    def problem(self, shape: tuple[int, int], config: GptaqConfig) -> str | None:
        return gptq.problem(shape, config)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: GptaqConfig
    ) -> CompressedWeight:
        if found := gptq.problem(current.shape, config):
            raise ConfigError(f"gptaq: {found}.")
        floats = unquantized(current, "gptaq")
        return requantized(floats, compress(W, floats, stats, config), "gptaq")


GPTAQ = _Gptaq()
