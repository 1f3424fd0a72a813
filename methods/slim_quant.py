"""SLiM-Quant: per-tensor symmetric quantization, searched range (arXiv:2410.09615, sec. 3.1).

The scale is chosen on a histogram of |W| to minimize rounding plus clipping error. The published
code and the paper's text model the rounding differently, so the objective is an option:

- `reference` (default, because the published numbers were made by that code): in-range weights are
  floored with step alpha / 2^bits although the quantizer rounds with step alpha / (2^(bits-1) - 1).
- `corrected`: the error of the quantizer that is really used, codes -2^(bits-1) included.
- `exact`: that error without a histogram, signs included, at as many alphas as there are bins (the
  code's branch without integration, which evaluates a part of them weight by weight; here sums over
  the sorted weights give every alpha in the time of a few look-ups, so all are tried).

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

Objective = Literal["reference", "corrected", "exact"]


class SlimQuantConfig(MethodConfig):
    """Defaults are the paper's."""

    bits: Bits = 4
    objective: Objective = "reference"


def bin_count(W: Tensor) -> int:
    """Bins of the histogram (Appendix T)."""
    return max(512, min(W.numel() // 1000, 20000))


def histogram(W: Tensor) -> tuple[Tensor, Tensor]:
    """Density of |W|: bin centres and probabilities, each [bins], float32."""
    magnitudes, bins = W.abs().float().flatten(), bin_count(W)
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


def exact_errors(W: Tensor, alphas: Tensor, bits: int) -> Tensor:
    """||Q_alpha(W) - W||_F^2 for every alpha.  W: [out, in]  alphas: [candidates] -> the same

    The weights that one code stands for are a run of the sorted weights, so prefix sums give the
    error of all of them at once.  float64, three times the size of W.
    """
    low, high = code_range(bits, symmetric=True)
    ordered = W.flatten().double().sort().values
    nothing = torch.zeros(1, dtype=torch.float64, device=W.device)
    sums = torch.cat([nothing, ordered.cumsum(0)])
    squares = float(ordered.square().sum())
    codes = torch.arange(low, high + 1, device=W.device)
    points = codes * (alphas.double() / high)[:, None]
    edges = torch.searchsorted(ordered, (points[:, 1:] + points[:, :-1]) / 2)
    ends = torch.nn.functional.pad(edges, (1, 1))
    ends[:, -1] = ordered.numel()
    counts, totals = ends.diff(dim=1), sums[ends].diff(dim=1)
    return squares + (points * (points * counts - 2 * totals)).sum(1)


def search_exact(W: Tensor, bits: int) -> float:
    """The alpha of the least squared error on an even grid over (0, max|W|]."""
    bins = bin_count(W)
    steps = torch.arange(1, bins + 1, device=W.device, dtype=torch.float64)
    alphas = steps * (float(W.abs().max()) / bins)
    return float(alphas[exact_errors(W, alphas, bits).argmin()])


def search_alpha(W: Tensor, bits: int, objective: Objective) -> float:
    """Algorithm 1: coarse pass over the bins, then all around the best.  -> alpha* <= max|W|"""
    largest = float(W.abs().max())
    if largest == float(W.abs().min()):
        return largest or 1.0
    if objective == "exact":
        return min(search_exact(W, bits), largest)
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
