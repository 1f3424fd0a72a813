"""SLiM-Quant: per-tensor symmetric quantization, searched range (arXiv:2410.09615, sec. 3.1).

The scale is chosen on a histogram of |W| to minimize rounding plus clipping error. The published
code and the paper's text model the rounding differently, so the objective is an option:

- `reference` (default, because the published numbers were made by that code): in-range weights are
  floored with step alpha / 2^bits although the quantizer rounds with step alpha / (2^(bits-1) - 1).
- `corrected`: the error of the quantizer that is really used, codes -2^(bits-1) included.

Differs from the code: the refinement range is clipped to the histogram instead of being empty when
the coarse optimum is the last bin, and a constant or all-zero weight has a defined answer.
"""

from typing import Literal

import torch
from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.formats import CompressedWeight, Quantized
from trinity.methods.formats.quantized import code_range
from trinity.methods.options import Bits
from trinity.methods.tensors import quantize, requantized

COARSE_STEPS = 10
CHUNK = 1 << 22  # histogram bins times candidates held at once: 16 MB of float32

Objective = Literal["reference", "corrected"]


class SlimQuantConfig(MethodConfig):
    """Defaults are the paper's."""

    bits: Bits = 4
    objective: Objective = "reference"


def histogram(W: Tensor) -> tuple[Tensor, Tensor]:
    """Density of |W|: bin centres and probabilities, each [bins], float32 (bins: Appendix T)."""
    magnitudes = W.abs().float().flatten()
    bins = max(512, min(magnitudes.numel() // 1000, 20000))
    low, high = (float(v) for v in torch.aminmax(magnitudes))
    counts = torch.histc(magnitudes, bins=bins, min=low, max=high)
    width = (high - low) / bins
    centres = low + width * (torch.arange(bins, device=W.device) + 0.5)
    return centres, counts / counts.sum()


def expected_error(
    alphas: Tensor, centres: Tensor, density: Tensor, bits: int, objective: Objective
) -> Tensor:
    """E(alpha) of eq. 5 on the histogram.  alphas: [candidates] -> [candidates]"""
    v, alpha = centres[None, :], alphas[:, None]
    if objective == "reference":
        step = alpha / 2**bits
        inside = (v - step * torch.floor(v / step)).square()
        return (torch.where(v < alpha, inside, (v - alpha).square()) * density).sum(1)
    low, high = code_range(bits, symmetric=True)
    step = alpha / high
    errors = [
        (v - step * torch.round(v / step).clamp(max=largest)).square() for largest in (high, -low)
    ]
    # |W| hides the sign: half of the weights clip at the code -2^(bits-1), half at 2^(bits-1) - 1.
    return ((errors[0] + errors[1]) / 2 * density).sum(1)


def search_alpha(W: Tensor, bits: int, objective: Objective) -> float:
    """Algorithm 1: coarse pass over the bins, then all around the best.  -> alpha* <= max|W|"""
    largest = float(W.abs().max())
    if largest == float(W.abs().min()):
        return largest or 1.0
    centres, density = histogram(W)
    bins = centres.numel()
    coarse = torch.arange(0, bins, bins // COARSE_STEPS, device=W.device)
    best = int(_errors(coarse, centres, density, bits, objective).argmin())
    first = int(coarse[max(best - 1, 0)])
    last = int(coarse[best + 1]) if best + 1 < coarse.numel() else bins
    fine = torch.arange(first, last, device=W.device)
    return float(centres[fine[_errors(fine, centres, density, bits, objective).argmin()]])


def _errors(
    candidates: Tensor, centres: Tensor, density: Tensor, bits: int, objective: Objective
) -> Tensor:
    """`expected_error` at the centres of the candidate bins, in pieces of bounded memory."""
    size = max(1, CHUNK // centres.numel())
    pieces = [
        expected_error(centres[piece], centres, density, bits, objective)
        for piece in torch.split(candidates, size)
    ]
    return torch.cat(pieces)


def compress(W: Tensor, config: SlimQuantConfig) -> Quantized:
    """Quantize a weight with one scale, alpha* / (2^(bits-1) - 1).  W: [out, in]"""
    alpha = search_alpha(W, config.bits, config.objective)
    scale = torch.full((1, 1), alpha / (2 ** (config.bits - 1) - 1), device=W.device)
    return quantize(W, scale, None, config.bits)


class _SlimQuant:
    name = "slim-quant"
    paper = "arXiv:2410.09615"
    config = SlimQuantConfig
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: SlimQuantConfig) -> str | None:
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: SlimQuantConfig
    ) -> CompressedWeight:
        return requantized(current, compress(current.dequantize(), config), "slim-quant")


SLIM_QUANT = _SlimQuant()
