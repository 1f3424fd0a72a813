"""BitStack: a weight as a stack of sign matrices times low-rank magnitudes (Wang et al.,
arXiv:2410.23918).

With inputs' norms s, each step takes the sign of what is left and the best approximation of rank k
of its magnitude (absolute value decomposition, eqs. 2 to 6):

    R_0 = W diag(s),   S_i = sign(R_i),   |R_i| ~ U_i V_i,   R_{i+1} = R_i - S_i * (U_i V_i)

The weight is sum_i S_i * (U_i V_i) diag(1/s).  The scale is folded into V_i and takes no bits.
Every term is one of the paper's blocks: a bit a weight, and two thin factors.  `bitstack-sort`
chooses how many each layer gets.

Differs from the published code:
- It folds scales into the layer that makes the inputs, where there is one that makes nothing else;
  here every layer has them, in V.
- A step subtracts the term as it is stored, rounded, so that later terms make up for it.
- A norm is the root of the mean over sequences of squares, where the code has the mean of roots.
"""

import torch
from pydantic import PositiveInt
from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, SignSum, Sparse
from trinity.methods.options import FloatName, cast
from trinity.methods.tensors import low_rank, unquantized

LEAST = 1e-3  # added to norms, so that inputs that are never active have a scale


class BitstackConfig(MethodConfig):
    """Defaults are the code's, but for `terms`, of which it stores all 16 and loads some.

    terms: sign matrices and their factors, about a bit a weight each
    rank: of a magnitude, at most the smaller side of the layer
    dtype: of the factors
    """

    terms: PositiveInt = 3
    rank: PositiveInt = 16
    dtype: FloatName = "float16"


def magnitude(R: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of |R|, its singular values shared by both factors (eq. 5).

    R: [out, in]  ->  U: [out, rank], V: [rank, in]
    """
    B, A = low_rank(R.abs(), rank)
    root = torch.linalg.vector_norm(A, dim=1).sqrt()  # A holds the singular values
    return B * root, A / torch.where(root == 0, 1.0, root)[:, None]


def stacked(W: Tensor, s: Tensor, config: BitstackConfig) -> SignSum:
    """Terms of W, one after another.  W: [out, in]   s: [in], scales of its inputs"""
    R, rank = W * s, min(config.rank, *W.shape)
    signs, left, right = [], [], []
    for _ in range(config.terms):
        U, V = magnitude(R, rank)
        U, V = cast(U, config.dtype), cast(V / s, config.dtype)
        negative = R < 0
        product = (U.to(R.dtype) @ V.to(R.dtype)) * s
        R = R - torch.where(negative, -product, product)
        signs.append(negative.to(torch.uint8))
        left.append(U)
        right.append(V)
    return SignSum(torch.stack(signs), torch.stack(left), torch.stack(right))


def term_bits(shape: tuple[int, int], config: BitstackConfig) -> int:
    """Bits of one term of a layer [out, in]: its signs, whole bytes a row, and its factors."""
    out, d_in = shape
    each = torch.finfo(getattr(torch, config.dtype)).bits
    return out * -(-d_in // 8) * 8 + each * min(config.rank, *shape) * (out + d_in)


class _Bitstack:
    name = "bitstack"
    paper = "arXiv:2410.23918"
    config = BitstackConfig
    needs = Statistic.X_NORM

    def problem(self, shape: tuple[int, int], config: BitstackConfig) -> str | None:
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: BitstackConfig
    ) -> CompressedWeight:
        weight = unquantized(current, self.name)
        if isinstance(weight, Sparse):
            msg = (
                "bitstack: an earlier step pruned this weight, and sums of signs have no zero. "
                "Leave one of the two out."
            )
            raise ConfigError(msg)
        if stats.x_norm is None:
            msg = "bitstack: needs input norms; the recipe has no calibration data."
            raise ConfigError(msg)
        return stacked(weight.dequantize(), stats.x_norm + LEAST, config)


BITSTACK = _Bitstack()
