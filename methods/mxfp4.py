"""MXFP4: FP4 (E2M1) in groups of 32 under a power of two (Rouhani et al., arXiv:2310.10537).

The conversion is the one of section 3 of the paper and of 6.3 of OCP Microscaling Formats 1.0: the
scale is 2^(floor(log2 max|W|) - 2), 2 being the exponent of E2M1's largest number, and what is then
larger than 6 becomes 6.
Differs from the specification: a group of zeros gets the scale 1, which it leaves open.
"""

import torch
from torch import Tensor

from trinity.methods.codebooks import group_largest, groups_problem, rounded
from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.formats import Coded, CompressedWeight
from trinity.methods.tensors import requantized

GROUP, LARGEST_EXPONENT = 32, 2
BIAS, MOST = 127, 254  # of E8M0, whose 255 is NaN


class Mxfp4Config(MethodConfig):
    """The specification leaves nothing open."""


def shared_scale(most: Tensor) -> Tensor:
    """2^(floor(log2 most) - 2), in the range of E8M0; 1 for zero.

    most: float32 [out, groups]  ->  float8_e8m0fnu, the same shape
    """
    _, above = torch.frexp(most)  # most = m * 2^above with m in [0.5, 1)
    exponent = torch.where(most > 0, above - 1 - LARGEST_EXPONENT, 0)
    return (exponent + BIAS).clamp(0, MOST).to(torch.uint8).view(torch.float8_e8m0fnu)


def compress(W: Tensor) -> Coded:
    """Round to nearest, half to even.  W: [out, in]"""
    return rounded(W, "e2m1", shared_scale(group_largest(W, GROUP, "mxfp4")), None)


class _Mxfp4:
    name = "mxfp4"
    paper = "arXiv:2310.10537"
    config = Mxfp4Config
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: Mxfp4Config) -> str | None:
        return groups_problem(shape, GROUP)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: Mxfp4Config
    ) -> CompressedWeight:
        return requantized(current, compress(current.dequantize()), "mxfp4")


MXFP4 = _Mxfp4()
