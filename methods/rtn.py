"""Round to nearest: AbsMax and min-max uniform quantization, no calibration data.

Asymmetric is the min-max grid of GPTQ (Frantar et al., arXiv:2210.17323, quant.py). Symmetric is
SLiM's "Group AbsMax", step max|W| / (2^(bits-1) - 1); GPTQ's symmetric step,
2 max|W| / (2^bits - 1), is not used.
Differs from both: the scale is rounded to its stored type *before* the codes are computed, so what
was rounded is what is decoded; an all-zero group gets scale 1 instead of a division by zero.
"""

from typing import Literal

import torch
from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Quantized
from trinity.methods.options import Bits, FloatName, GroupSize, cast
from trinity.methods.tensors import quantize, requantized


class RtnConfig(MethodConfig):
    """Defaults are SLiM's baseline: 4 bits, symmetric, groups of 128.

    group_size: consecutive inputs that share one scale, or 'channel' or 'tensor'
    ragged: what to do with a layer whose `in` is no multiple of the group: refuse the run, or
        quantize that layer per channel (the record lists the format of every layer)
    """

    bits: Bits = 4
    group_size: GroupSize = 128
    symmetric: bool = True
    scale_dtype: FloatName = "float16"
    ragged: Literal["refuse", "channel"] = "refuse"


def problem(shape: tuple[int, int], config: RtnConfig) -> str | None:
    """Why the groups do not fit a layer [out, in], or None."""
    size = config.group_size
    if isinstance(size, int) and shape[1] % size and config.ragged == "refuse":
        return (
            f"group_size {size} does not divide in = {shape[1]} (choose a divisor, or set "
            f"`ragged: channel` to quantize such layers per channel)"
        )
    return None


def scale_shape(shape: tuple[int, int], config: RtnConfig) -> tuple[int, int]:
    """Shape of the scale of a layer [out, in]; ConfigError where the groups do not fit it."""
    if found := problem(shape, config):
        raise ConfigError(f"rtn: {found}.")
    out, d_in = shape
    if config.group_size == "tensor":
        return (1, 1)
    if config.group_size == "channel" or d_in % config.group_size:
        return (out, 1)
    return (out, d_in // config.group_size)


def absmax_scale(W: Tensor, shape: tuple[int, int], bits: int) -> Tensor:
    """Symmetric: the largest |W| of a group lands on the largest code.  -> float32 `shape`"""
    largest = _groups(W, shape).abs().amax(-1)
    return torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)


def minmax_range(W: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Smallest and largest weight of a group, widened to hold 0 so that 0 is on the grid."""
    groups = _groups(W, shape)
    return groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)


def compress(W: Tensor, config: RtnConfig) -> Quantized:
    """Quantize a weight.  W: [out, in]"""
    shape = scale_shape((W.shape[0], W.shape[1]), config)
    if config.symmetric:
        scale = cast(absmax_scale(W, shape, config.bits), config.scale_dtype)
        return quantize(W, scale, None, config.bits)
    low, high = minmax_range(W, shape)
    span = torch.where(high > low, (high - low) / (2**config.bits - 1), 1.0)
    scale = cast(span, config.scale_dtype)
    zero_point = torch.round(-low / scale.float()).clamp(0, 2**config.bits - 1).to(torch.uint8)
    return quantize(W, scale, zero_point, config.bits)


def _groups(W: Tensor, shape: tuple[int, int]) -> Tensor:
    """W as [*shape, weights that share a scale]."""
    if shape == (1, 1):
        return W.reshape(1, 1, -1)
    return W.reshape(W.shape[0], shape[1], -1)


class _Rtn:
    name = "rtn"
    paper = "arXiv:2210.17323"
    config = RtnConfig
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: RtnConfig) -> str | None:
        return problem(shape, config)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: RtnConfig
    ) -> CompressedWeight:
        # The grid is fitted on what is left to store: pruned weights do not widen a group's range.
        return requantized(current, compress(current.dequantize(), config), "rtn")


RTN = _Rtn()
