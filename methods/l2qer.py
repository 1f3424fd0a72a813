"""L2QER: adapters fitted to the quantization error, weighted by activations (arXiv:2402.02446).

With E the weight less its quantization and s_j the mean magnitude of input j, the adapter is the
best of its rank in the norm |(E - B A) diag(s)|_F: a truncated SVD of E diag(s), divided by s
again.  It is SLiM-LoRA's fit with another saliency and, on a pruned weight, another target.

SLiM's tables use it as a baseline beside a mask, which its paper does not treat, and do not say
how.  Here, by default, the adapter repairs what quantization did to the kept weights and knows
nothing of the pruning: the method's own target, on the weights that it is given.  `repairs: all`
fits what pruning took away too.

Differs from the published code: s is the mean of |x| over all tokens, where the code takes the
largest of the means over the batches that it happens to run; inputs that are never active get the
smallest positive s, where the code takes max(s, 1e-4), which depends on the scale of the inputs;
factors are floats, where the code quantizes them to 8 bits; A is computed as B^T E, which is the
same in exact arithmetic and does not divide rounding by a small s.
"""

from typing import Literal

import torch
from torch import Tensor

from trinity.methods.adapters import Rank, rank_of
from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Adapted, CompressedWeight, Sparse
from trinity.methods.options import FloatName, cast
from trinity.methods.slim_lora import factors


class L2qerConfig(MethodConfig):
    """Rank and type as in SLiM's tables, whose rank is not stated: 0.1 is that of its other rows.

    rank: a fraction of min(out, in), rounded down, if below 1; else the rank itself (the paper: 32)
    repairs: 'quantization' of the kept weights, or 'all' that compression did
    dtype: of the stored factors
    """

    rank: Rank = 0.1
    repairs: Literal["quantization", "all"] = "quantization"
    dtype: FloatName = "float16"


def saliency(x_mean_abs: Tensor) -> Tensor:
    """s_j > 0 of each input.  x_mean_abs: [in] -> [in].  Its scale has no effect on B A."""
    positive = x_mean_abs[x_mean_abs > 0]
    return x_mean_abs.clamp_min(positive.min()) if positive.numel() else torch.ones_like(x_mean_abs)


def error(W: Tensor, current: CompressedWeight, repairs: str) -> Tensor:
    """What the adapter is fitted to.  W: [out, in]  ->  [out, in]"""
    E = W - current.dequantize()
    if repairs == "quantization" and isinstance(current, Sparse):
        E = E.mul_(current.mask)
    return E


def compress(
    W: Tensor, current: CompressedWeight, x_mean_abs: Tensor, config: L2qerConfig
) -> Adapted:
    """Fit an adapter beside the current weight.  W: [out, in]  x_mean_abs: [in]"""
    if isinstance(current, Adapted):
        msg = "l2qer: an earlier step already gave this weight adapters."
        raise ConfigError(msg)
    rank = rank_of(current.shape, config.rank)
    B, A = factors(error(W, current, config.repairs), saliency(x_mean_abs), rank)
    return Adapted(current, cast(B, config.dtype), cast(A, config.dtype))


class _L2qer:
    name = "l2qer"
    paper = "arXiv:2402.02446"
    config = L2qerConfig
    needs = Statistic.X_MEAN_ABS

    def problem(self, shape: tuple[int, int], config: L2qerConfig) -> str | None:
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: L2qerConfig
    ) -> CompressedWeight:
        if stats.x_mean_abs is None:
            msg = "l2qer: needs mean input magnitudes; the recipe has no calibration data."
            raise ConfigError(msg)
        return compress(W, current, stats.x_mean_abs, config)


L2QER = _L2qer()
