"""NVFP4: FP4 (E2M1) in groups of 16 under E4M3 scales under one float32 (arXiv:2509.25149).

The conversion is the one of the paper's appendix on NVFP4: the tensor's largest magnitude becomes
6 * 448, a group's largest magnitude becomes 6 as nearly as E4M3 allows.
Differs from the paper: the float32 is stored as what scales are multiplied by (checkpoints of other
programs store its inverse); a scale that E4M3 would round to zero becomes its smallest number,
2^-9, so that what has such a scale is still rounded to nearest.
"""

from torch import Tensor

from trinity.methods.codebooks import group_largest, groups_problem, rounded, top_scale, two_level
from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.formats import Coded, CompressedWeight
from trinity.methods.tensors import requantized

GROUP = 16


class Nvfp4Config(MethodConfig):
    """The format leaves nothing open."""


def compress(W: Tensor) -> Coded:
    """Round to nearest, half to even.  W: [out, in]"""
    most = group_largest(W, GROUP, "nvfp4")
    # A group of zeros takes the scale of the largest group, so that it widens no range.
    scale = top_scale(most.where(most > 0, most.amax()), "e2m1")
    return rounded(W, "e2m1", *two_level(scale))


class _Nvfp4:
    name = "nvfp4"
    paper = "arXiv:2509.25149"
    config = Nvfp4Config
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: Nvfp4Config) -> str | None:
        return groups_problem(shape, GROUP)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: Nvfp4Config
    ) -> CompressedWeight:
        return requantized(current, compress(current.dequantize()), "nvfp4")


NVFP4 = _Nvfp4()
