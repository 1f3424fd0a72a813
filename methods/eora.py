"""EoRA: an adapter for what compression took, best at the layer's outputs (arXiv:2410.21271).

With E the original weight less what it was compressed to, the adapter of rank r minimizes
|(E - B A) X|_F over the calibration inputs.  The paper projects E into the eigenspace of X X^T,
E Q sqrt(Lambda), truncates its singular value decomposition U S V^T to r, and projects back:
B = U, A = S V^T (Q sqrt(Lambda))^-1.

Differs from the published code:
- A is computed as U^T E, which is the same in exact arithmetic and divides by no eigenvalue: those
  of inputs that are never active are zero, where the code takes the smallest positive one.  U are
  the leading eigenvectors of E X X^T E^T, in float64.
- B has orthonormal columns, where the code gives each factor sqrt(S): B A is the same.
- X X^T is the mean over all tokens.  The code's running mean weighs batches unequally.
"""

import torch
from torch import Tensor

from trinity.methods.adapters import Rank, rank_of
from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Adapted, CompressedWeight
from trinity.methods.options import FloatName, cast
from trinity.methods.solve import hessian


class EoraConfig(MethodConfig):
    """Defaults are the paper's.

    rank: a fraction of min(out, in), rounded down, if below 1; else the rank itself, at most
        min(out, in)
    dtype: of the stored factors
    """

    rank: Rank = 128
    dtype: FloatName = "float16"


def factors(E: Tensor, H: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The B [out, rank], A [rank, in] that minimize tr((E - B A) H (E - B A)^T).

    E: [out, in]   H: [in, in], symmetric, not negative   B has orthonormal columns
    """
    exact = E.double()
    # E H E^T = (E Q sqrt(Lambda)) (E Q sqrt(Lambda))^T: its eigenvectors are the U of the paper.
    _, vectors = torch.linalg.eigh(exact @ H.double() @ exact.T)
    U = vectors[:, -rank:].flip(1)
    return U.to(E.dtype).contiguous(), (U.T @ exact).to(E.dtype)


def compress(
    W: Tensor, current: CompressedWeight, stats: LayerStats, config: EoraConfig
) -> Adapted:
    """Fit an adapter beside the current weight.  W: [out, in], the original weight"""
    if isinstance(current, Adapted):
        msg = "eora: an earlier step already gave this weight adapters."
        raise ConfigError(msg)
    E = W.float() - current.dequantize()
    B, A = factors(E, hessian(stats, "eora"), rank_of(current.shape, config.rank))
    return Adapted(current, cast(B, config.dtype), cast(A, config.dtype))


class _Eora:
    name = "eora"
    paper = "arXiv:2410.21271"
    config = EoraConfig
    needs = Statistic.HESSIAN

    def problem(self, shape: tuple[int, int], config: EoraConfig) -> str | None:
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: EoraConfig
    ) -> CompressedWeight:
        return compress(W, current, stats, config)


EORA = _Eora()
