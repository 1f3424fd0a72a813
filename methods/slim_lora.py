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

`adapter_bits` quantizes the factors (SLiM-LoRA^Q) and `adapter_pattern` prunes A, see
`trinity.methods.adapters`. A pruned A is fitted with its mask, not masked afterwards: the code runs
1000 steps of Adam on the masked product, here two exact steps alternate (`pruned_factors`).
"""

from typing import Literal

import torch
from torch import Tensor

from trinity.methods.adapters import AdapterConfig, adapter_problem, adapter_rank, stored
from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Adapted, CompressedWeight
from trinity.methods.tensors import low_rank, nm_mask
from trinity.methods.wanda import shifted

Saliency = Literal["rms", "mean-abs", "none"]
ALTERNATIONS = 200
LEAST_GAIN = 1e-5  # of the squared error, a step that gains less is the last


class SlimLoraConfig(AdapterConfig):
    """Defaults are the paper's.

    saliency: the weight d_j of input j, see the module's text
    """

    saliency: Saliency = "rms"


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


def pruned_factors(E: Tensor, d: Tensor, rank: int, pattern: NM) -> tuple[Tensor, Tensor, Tensor]:
    """B A close to E in the norm ||(E - BA) diag(d)||_F, with A pruned N:M along the inputs.

    For B with orthonormal columns the best A is the mask of B^T E diag(d) times that matrix, and
    the best mask keeps its largest entries; for such an A the best orthonormal B is the polar
    factor of E diag(d) A^T. The two steps alternate from the unpruned fit, so no step loses.

    E: [out, in]  d: [in], positive  ->  B: [out, rank], A: [rank, in], mask: bool [rank, in]
    """
    T = E * d
    B, _ = low_rank(T, rank)
    mask, kept = nm_mask((B.T @ T).abs(), pattern), 0.0
    for _ in range(ALTERNATIONS):
        P = (B.T @ T).masked_fill(~mask, 0)
        before, kept = kept, float(P.double().square().sum())
        if kept - before <= LEAST_GAIN * kept:
            break
        U, _, Vh = torch.linalg.svd(T @ P.T, full_matrices=False)
        B = U @ Vh
        mask = nm_mask((B.T @ T).abs(), pattern)
    return B, (B.T @ E).masked_fill(~mask, 0), mask


def compress(
    W: Tensor, current: CompressedWeight, stats: LayerStats, config: SlimLoraConfig
) -> Adapted:
    """Fit an adapter to what compression lost.  W: [out, in]"""
    if isinstance(current, Adapted):
        msg = "slim-lora: an earlier step already gave this weight adapters."
        raise ConfigError(msg)
    d = saliency(stats, W, config.saliency)
    if found := adapter_problem(current.shape, config):
        msg = f"slim-lora: {found}."
        raise ConfigError(msg)
    rank, E, mask = adapter_rank(current.shape, config), W - current.dequantize(), None
    if isinstance(config.adapter_pattern, NM):
        B, A, mask = pruned_factors(E, d, rank, config.adapter_pattern)
    else:
        B, A = factors(E, d, rank)
    return Adapted(current, *stored(B, A, mask, config))


class _SlimLora:
    name = "slim-lora"
    paper = "arXiv:2410.09615"
    config = SlimLoraConfig
    needs = Statistic.X_NORM | Statistic.X_MEAN_ABS

    def problem(self, shape: tuple[int, int], config: SlimLoraConfig) -> str | None:
        return adapter_problem(shape, config)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: SlimLoraConfig
    ) -> CompressedWeight:
        return compress(W, current, stats, config)


SLIM_LORA = _SlimLora()
