"""Wanda: prune by weight magnitude times input norm (Sun et al., arXiv:2306.11695).

Differs from the paper's code: ties keep the lower column, so runs repeat bit for bit.
`norm: shifted` is SLiM's variant (arXiv:2410.09615): the smallest positive squared norm is added to
all squared norms.
"""

from typing import Literal

from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, CompressedWeight, Pattern, Sparse
from trinity.methods.options import PatternOption
from trinity.methods.tensors import lowest_removed, masked, nm_mask, pattern_problem


class WandaConfig(MethodConfig):
    """Defaults are the paper's.

    pattern: N:M, or an unstructured sparsity that every row reaches
    norm: 'plain', or 'shifted' as in SLiM's scripts
    """

    pattern: PatternOption
    norm: Literal["plain", "shifted"] = "plain"


def shifted(x_norm: Tensor) -> Tensor:
    """SLiM's shift: sqrt(s + m), s = x_norm^2, m its smallest positive entry (1 if there is none).

    x_norm: [in] -> [in], positive.  SLiM's code takes min(m, 1) when some entry is 0, which makes
        the
    mask depend on the scale of the activations; here it does not.
    """
    s = x_norm.square()
    positive = s[s > 0]
    return (s + (positive.min() if positive.numel() else 1.0)).sqrt()


def scores(W: Tensor, x_norm: Tensor) -> Tensor:
    """Importance |W_ij| * ||X_j||_2 (eq. 1).  W: [out, in]  x_norm: [in]  ->  [out, in]"""
    return W.abs() * x_norm


def mask(W: Tensor, x_norm: Tensor, pattern: Pattern) -> Tensor:
    """Keep the highest scores, by group for N:M, else by output row.  -> bool [out, in]"""
    S = scores(W, x_norm)
    if isinstance(pattern, NM):
        return nm_mask(S, pattern)
    return lowest_removed(S, int(S.shape[1] * pattern.sparsity))


def compress(W: Tensor, current: CompressedWeight, x_norm: Tensor, config: WandaConfig) -> Sparse:
    """Mask of the original weight on the current one.  W: [out, in]  x_norm: [in]"""
    norm = shifted(x_norm) if config.norm == "shifted" else x_norm
    return masked(current, mask(W, norm, config.pattern), config.pattern, "wanda")


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
