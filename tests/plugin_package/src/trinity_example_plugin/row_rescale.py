"""Row rescale: after pruning, scale every output row so that the layer's output fits best.

For row w and its pruned version q the factor is a = (q H w) / (q H q), the least-squares answer to
min_a ||X (a q - w)||.  A block method, because it serves all linears of a block in one step.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trinity.methods.contract import BlockTask, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense, Sparse


class RowRescaleConfig(MethodConfig):
    """No options."""


def row_factors(W: Tensor, Q: Tensor, H: Tensor) -> Tensor:
    """W, Q: [out, in]  H: [in, in]  ->  [out, 1]; 1 for a row that gives no output."""
    QH = Q @ H
    size = (QH * Q).sum(1, keepdim=True)
    fit = (QH * W).sum(1, keepdim=True)
    return torch.where(size > 0, fit / size, 1.0)


def rescaled(W: Tensor, current: CompressedWeight, H: Tensor) -> CompressedWeight:
    """The current weight with every row rescaled, under the same mask."""
    if isinstance(current, Dense):
        values = current.dequantize()
        return Dense(values * row_factors(W, values, H))
    if isinstance(current, Sparse) and isinstance(current.values, Dense):
        values = current.dequantize()
        scaled = Dense(values * row_factors(W, values, H))
        return Sparse(scaled, current.mask, current.pattern)
    msg = "row-rescale: rescales floats only; put it before the step that quantizes or adapts."
    raise ConfigError(msg)


class _RowRescale:
    name = "row-rescale"
    paper = "least squares"
    config = RowRescaleConfig
    needs = Statistic.HESSIAN

    def problem(self, shape: tuple[int, int], config: RowRescaleConfig) -> str | None:
        return None

    def compress_block(
        self, task: BlockTask, config: RowRescaleConfig
    ) -> Mapping[str, CompressedWeight]:
        weights = {}
        for name, W in task.weights.items():
            H = task.stats[name].H
            if H is None:
                msg = f"row-rescale: {name} has no Hessian; the recipe has no calibration data."
                raise ConfigError(msg)
            weights[name] = rescaled(W, task.current[name], H)
        return weights


ROW_RESCALE = _RowRescale()
