"""Magnitude pruning (Han et al., arXiv:1506.02626), the baseline of the pruning papers.

Differs from their scripts: exactly `floor(size * sparsity)` weights of a layer are removed. The
scripts remove everything not above a threshold, so ties, and one weight even at sparsity 0, go too.
Ties keep the lower index, so runs repeat bit for bit.
"""

from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.formats import NM, CompressedWeight, Pattern, Sparse
from trinity.methods.options import PatternOption
from trinity.methods.tensors import lowest_removed, masked, nm_mask, pattern_problem


class MagnitudeConfig(MethodConfig):
    """pattern: N:M, or an unstructured sparsity that is reached over the whole layer."""

    pattern: PatternOption


def mask(W: Tensor, pattern: Pattern) -> Tensor:
    """Keep the largest |W|, by group for N:M, else over the whole layer.  -> bool [out, in]"""
    if isinstance(pattern, NM):
        return nm_mask(W.abs(), pattern)
    flat = W.abs().reshape(1, -1)
    return lowest_removed(flat, int(flat.shape[1] * pattern.sparsity)).view_as(W)


def compress(W: Tensor, current: CompressedWeight, config: MagnitudeConfig) -> Sparse:
    """Mask of the original weight on the current one.  W: [out, in]"""
    return masked(current, mask(W, config.pattern), config.pattern, "magnitude")


class _Magnitude:
    name = "magnitude"
    paper = "arXiv:1506.02626"
    config = MagnitudeConfig
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: MagnitudeConfig) -> str | None:
        return pattern_problem(shape, config.pattern)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: MagnitudeConfig
    ) -> CompressedWeight:
        return compress(W, current, config)


MAGNITUDE = _Magnitude()
