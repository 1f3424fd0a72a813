"""SLiM-LoRA: one-shot adapters weighted by activations (Mozaffari et al., arXiv:2410.09615, 3.2).

This step is the paper's Algorithm 2: the compressed weight stays as it is and the adapter is the
best low-rank fit to its error, in the norm that weighs input j by d_j. (The published code
re-quantizes the remainder after fitting the adapter; that needs the quantizer and the mask, so it
is the method `slim`.)

The saliency d is an option because paper and code differ:
- `rms` (default, the code): root of SLiM's shifted second moment
- `mean-abs` (the paper's text): mean |x|, plus its smallest positive entry
- `none`: d = 1, the Naive-LoRA baseline

Both factors keep the paper's split: B has orthonormal columns, A holds the singular values and 1/d.
A is computed as B^T E, which is the same in exact arithmetic: dividing by d would multiply the
float32 error of the SVD by max(d) / min(d), which is large where some input is almost dead.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Adapted, CompressedWeight
from trinity.methods.options import FloatName, cast
from trinity.methods.tensors import low_rank
from trinity.methods.wanda import shifted

Saliency = Literal["rms", "mean-abs", "none"]
# 1.0 is refused: it could mean all of the smaller side or a rank of one.
Rank = Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(gt=0, strict=True)]


class SlimLoraConfig(MethodConfig):
    """Defaults are the paper's.

    rank: a fraction of min(out, in), rounded down, if below 1; else the rank itself
    dtype: of the stored factors. The code uses bfloat16; float16 has three more bits of mantissa
        and is loaded by every GPU target.
    """

    rank: Rank = 0.1
    saliency: Saliency = "rms"
    dtype: FloatName = "float16"


def rank_of(shape: tuple[int, int], rank: float) -> int:
    """Adapter rank of a layer [out, in]; at least 1, at most min(out, in)."""
    smaller = min(shape)
    return min(smaller, int(rank) if rank >= 1 else max(1, int(rank * smaller)))


def saliency(stats: LayerStats, W: Tensor, kind: Saliency) -> Tensor:
    """Weight d_j > 0 of each input of W: [out, in].  -> [in], float32"""
    if kind == "none":
        return torch.ones(W.shape[1], device=W.device)
    x = stats.x_norm if kind == "rms" else stats.x_mean_abs
    if x is None:
        msg = (
            f"slim-lora: saliency '{kind}' needs calibration data, and the recipe has none. "
            f"Add `calibration`, or set `saliency: none`."
        )
        raise ConfigError(msg)
    if kind == "rms":
        return shifted(x)
    positive = x[x > 0]
    return x + (positive.min() if positive.numel() else 1.0)


def factors(E: Tensor, d: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The rank-`rank` B A closest to E in the norm ||(E - BA) diag(d)||_F (Algorithm 2).

    E: [out, in]  d: [in], positive  ->  B: [out, rank], A: [rank, in]
    """
    B, _ = low_rank(E * d, rank)
    return B, B.T @ E


def compress(
    W: Tensor, current: CompressedWeight, stats: LayerStats, config: SlimLoraConfig
) -> Adapted:
    """Fit an adapter to what compression lost.  W: [out, in]"""
    if isinstance(current, Adapted):
        msg = "slim-lora: an earlier step already gave this weight adapters."
        raise ConfigError(msg)
    d = saliency(stats, W, config.saliency)
    rank = rank_of(current.shape, config.rank)
    B, A = factors(W - current.dequantize(), d, rank)
    return Adapted(current, cast(B, config.dtype), cast(A, config.dtype))


class _SlimLora:
    name = "slim-lora"
    paper = "arXiv:2410.09615"
    config = SlimLoraConfig
    needs = Statistic.X_NORM | Statistic.X_MEAN_ABS

    def problem(self, shape: tuple[int, int], config: SlimLoraConfig) -> str | None:
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: SlimLoraConfig
    ) -> CompressedWeight:
        return compress(W, current, stats, config)


SLIM_LORA = _SlimLora()
