"""NF4: round to the quantiles of a normal distribution (QLoRA, Dettmers et al., arXiv:2305.14314).

Differs from the paper and its code: groups are consecutive inputs of one output, not of the
flattened matrix (the same where the group size divides `in`, which is asked for); the scale is
rounded to its stored type before the codes are computed; of two levels equally near, the even code
is taken; `scale_dtype: float8` has one float32 for the tensor where the paper's double quantization
has one for 256 scales, and subtracts no mean.
"""

from torch import Tensor

from trinity.methods.codebooks import (
    ScaleType,
    group_largest,
    groups_problem,
    rounded,
    stored_scale,
    top_scale,
)
from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.formats import Coded, CompressedWeight
from trinity.methods.options import GroupSize
from trinity.methods.tensors import requantized


class Nf4Config(MethodConfig):
    """Defaults are the paper's, but for scales in float16.

    group_size: consecutive inputs that share one scale, or 'channel' or 'tensor'
    scale_dtype: type in which scales are stored; 'float8' is E4M3 under one float32
    """

    group_size: GroupSize = 64
    scale_dtype: ScaleType = "float16"


def compress(W: Tensor, config: Nf4Config) -> Coded:
    """The largest magnitude of a group becomes 1.  W: [out, in]"""
    scale = top_scale(group_largest(W, config.group_size, "nf4"), "nf4")
    return rounded(W, "nf4", *stored_scale(scale, config.scale_dtype))


class _Nf4:
    name = "nf4"
    paper = "arXiv:2305.14314"
    config = Nf4Config
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: Nf4Config) -> str | None:
        return groups_problem(shape, config.group_size)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: Nf4Config
    ) -> CompressedWeight:
        # Fitted to what is left to store: pruned weights do not widen a group's range.
        return requantized(current, compress(current.dequantize(), config), "nf4")


NF4 = _Nf4()
