"""FP8: E4M3 numbers under a scale (Micikevicius et al., arXiv:2209.05433), weights alone.

Differs from the paper: it scales tensors of training by powers of two; here a group's largest
magnitude becomes 448, E4M3's largest number, as checkpoints for inference have it.
"""

from torch import Tensor

from trinity.methods.codebooks import group_largest, groups_problem, rounded, top_scale
from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.formats import Coded, CompressedWeight
from trinity.methods.options import FloatName, GroupSize, cast
from trinity.methods.tensors import requantized


class Fp8Config(MethodConfig):
    """Defaults are those of checkpoints for inference.

    group_size: consecutive inputs that share one scale, or 'channel' or 'tensor'
    scale_dtype: type in which scales are stored; float16 is too narrow for 1/448 of most weights
    """

    group_size: GroupSize = "channel"
    scale_dtype: FloatName = "float32"


def compress(W: Tensor, config: Fp8Config) -> Coded:
    """Round to nearest, half to even.  W: [out, in]"""
    scale = top_scale(group_largest(W, config.group_size, "fp8"), "e4m3")
    return rounded(W, "e4m3", cast(scale, config.scale_dtype), None)


class _Fp8:
    name = "fp8"
    paper = "arXiv:2209.05433"
    config = Fp8Config
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: Fp8Config) -> str | None:
        return groups_problem(shape, config.group_size)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: Fp8Config
    ) -> CompressedWeight:
        return requantized(current, compress(current.dequantize(), config), "fp8")


FP8 = _Fp8()
