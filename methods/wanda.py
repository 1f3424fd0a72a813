"""Wanda: prune by weight magnitude times input norm (Sun et al., arXiv:2306.11695).

Differs from the paper's code: ties keep the lower column, so runs repeat bit for bit.
`norm: shifted` is SLiM's variant (arXiv:2410.09615): the smallest positive squared norm is added to
all squared norms.
`threshold: adaptive` is the variant of the paper's code (`use_variant`): a row loses its smallest
scores as long as they sum to at most a share alpha of the row's total, with one alpha for the
layer, so that rows which depend on few weights lose more of them.
"""

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, CompressedWeight, Pattern, Sparse
from trinity.methods.options import PatternOption
from trinity.methods.tensors import lowest_removed, masked, nm_mask, pattern_problem

ADAPTIVE_HIGHEST = 0.8
ADAPTIVE_NEAR = 0.001  # to the sparsity
ADAPTIVE_STEP = 1e-6  # of alpha


class WandaConfig(MethodConfig):
    """Defaults are the paper's.

    pattern: N:M, or an unstructured sparsity that every row reaches
    norm: 'plain', or 'shifted' as in SLiM's scripts
    threshold: of an unstructured pattern: 'row' prunes every row to the sparsity, 'adaptive' the
        layer as a whole
    """

    pattern: PatternOption
    norm: Literal["plain", "shifted"] = "plain"
    threshold: Literal["row", "adaptive"] = "row"

    @model_validator(mode="after")
    def _rows_adapt_only_without_groups(self) -> "WandaConfig":
        if self.threshold == "adaptive" and isinstance(self.pattern, NM):
            msg = (
                f"threshold 'adaptive' gives rows different sparsity, and {self.pattern} gives "
                f"every group the same: use an unstructured pattern such as '50%'"
            )
            raise ValueError(msg)
        return self


def shifted(x_norm: Tensor) -> Tensor:
    """SLiM's shift: sqrt(s + m), s = x_norm^2, m its smallest positive entry (1 if there is none).

    x_norm: [in] -> [in], positive.  SLiM's code takes min(m, 1) when some entry is 0, which makes
    the mask depend on the scale of the activations; here it does not.
    """
    s = x_norm.square()
    positive = s[s > 0]
    return (s + (positive.min() if positive.numel() else 1.0)).sqrt()


def scores(W: Tensor, x_norm: Tensor) -> Tensor:
    """Importance |W_ij| * ||X_j||_2 (eq. 1).  W: [out, in]  x_norm: [in]  ->  [out, in]"""
    return W.abs() * x_norm


def mask(W: Tensor, x_norm: Tensor, pattern: Pattern) -> Tensor:
    """Keep the highest scores.  W: [out, in]  x_norm: [in]  ->  bool [out, in]"""
    return highest(scores(W, x_norm), pattern)


def highest(S: Tensor, pattern: Pattern) -> Tensor:
    """Keep the highest scores, by group for N:M, else by output row.  S: [out, in]  ->  bool"""
    if isinstance(pattern, NM):
        return nm_mask(S, pattern)
    return lowest_removed(S, int(S.shape[1] * pattern.sparsity))


def adaptive_mask(S: Tensor, sparsity: float) -> Tensor:
    """Remove of each row the longest ascending prefix that sums to at most alpha of its total.

    S: scores [out, in]  ->  bool [out, in], True keeps.  alpha in [0, 0.8] is bisected from 0.4,
    as in the code, until the sparsity is within 0.001 of the one wanted.  Where no alpha does that,
    the search ends when alpha is known to 1e-6; the code ends at 0.001 and so misses low
    sparsities.  A row of zeros is cut as if its scores were equal.
    """
    ascending, order = S.sort(dim=1, descending=True, stable=True)
    # Backwards, so that of equal scores the higher column goes first, as in `lowest_removed`.
    ascending, order = ascending.flip(1).double(), order.flip(1)
    # float64: the sums decide where a row is cut.
    sums = torch.where(ascending[:, -1:] > 0, ascending, 1.0).cumsum(1)
    low, high, alpha = 0.0, ADAPTIVE_HIGHEST, ADAPTIVE_HIGHEST / 2
    while True:
        removed = sums <= alpha * sums[:, -1:]
        found = float(removed.double().mean())
        if abs(found - sparsity) <= ADAPTIVE_NEAR or high - low <= ADAPTIVE_STEP:
            return torch.ones_like(removed).scatter_(1, order, ~removed)
        low, high = (low, alpha) if found > sparsity else (alpha, high)
        alpha = (low + high) / 2


def compress(W: Tensor, current: CompressedWeight, x_norm: Tensor, config: WandaConfig) -> Sparse:
    """Mask of the original weight on the current one.  W: [out, in]  x_norm: [in]"""
    norm = shifted(x_norm) if config.norm == "shifted" else x_norm
    if config.threshold == "adaptive":
        kept = adaptive_mask(scores(W, norm), config.pattern.sparsity)
    else:
        kept = mask(W, norm, config.pattern)
    return masked(current, kept, config.pattern, "wanda")


class _Wanda:
    name = "wanda"
    paper = "arXiv:2306.11695"
    config = WandaConfig
    needs = Statistic.X_NORM

    def problem(self, shape: tuple[int, int], config: WandaConfig) -> str | None:
        return pattern_problem(shape, config.pattern)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: WandaConfig
    ) -> CompressedWeight:
        if stats.x_norm is None:
            msg = "wanda: needs input norms; the recipe has no calibration data."
            raise ConfigError(msg)
        return compress(W, current, stats.x_norm, config)


WANDA = _Wanda()
