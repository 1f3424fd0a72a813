"""SLiM-Quant^O: SLiM-Quant with the salient inputs on a finer grid (arXiv:2410.09615, sec. 3.1).

The weights of the most salient inputs are multiplied by a factor before they are rounded, and these
inputs are divided by it at run time.  The scale of the tensor stays the one that SLiM-Quant finds
on the weights as they are, so a salient weight beyond alpha / factor is clipped.

What is salient is an option because paper and code differ:
- `second-moment` (default, the code): SLiM's shifted squared norm of the input, times sum |W_ij|
- `mean-abs` (the paper): mean |x_j|, times mean |W_ij|

Differs from the code: the division is stored as a scale of each input (`Quantized.input_scale`),
where the code keeps dequantized weights; and ties keep the lower column.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Quantized
from trinity.methods.options import FloatName, cast
from trinity.methods.slim_quant import SlimQuantConfig, search_alpha
from trinity.methods.tensors import quantize, requantized
from trinity.methods.wanda import shifted

InputSaliency = Literal["second-moment", "mean-abs"]


class SlimQuantOConfig(SlimQuantConfig):
    """Defaults are the code's.

    saliency: see the module's text   fraction: of the inputs that are salient, rounded down
    factor: what their weights are multiplied by   scale_dtype: of the scales of the inputs
    """

    saliency: InputSaliency = "second-moment"
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    factor: Annotated[float, Field(gt=1)] = 2.0
    scale_dtype: FloatName = "float16"


def salient_inputs(W: Tensor, stats: LayerStats, config: SlimQuantOConfig) -> Tensor:
    """The inputs to protect.  W: [out, in]  ->  bool [in]"""
    x = stats.x_norm if config.saliency == "second-moment" else stats.x_mean_abs
    if x is None:
        msg = (
            f"slim-quant-o: saliency '{config.saliency}' needs calibration data, and the recipe "
            f"has none. Add `calibration`, or use slim-quant."
        )
        raise ConfigError(msg)
    size = shifted(x).square() if config.saliency == "second-moment" else x
    order = (size * W.abs().sum(0)).argsort(descending=True, stable=True)
    found = torch.zeros(W.shape[1], dtype=torch.bool, device=W.device)
    found[order[: int(config.fraction * W.shape[1])]] = True
    return found


def compress(W: Tensor, salient: Tensor, config: SlimQuantOConfig) -> Quantized:
    """Quantize with one scale and a factor on some inputs.  W: [out, in]  salient: bool [in]"""
    alpha = search_alpha(W, config.bits, config.objective)
    scale = torch.full((1, 1), alpha / (2 ** (config.bits - 1) - 1), device=W.device)
    if not bool(salient.any()):
        return quantize(W, scale, None, config.bits)
    ones = torch.ones(W.shape[1], device=W.device)
    inputs = cast(torch.where(salient, ones / config.factor, ones), config.scale_dtype)
    # Divided by what is stored, so that rounding 1 / factor costs nothing.
    codes = quantize(W / inputs.float(), scale, None, config.bits)
    return replace(codes, input_scale=inputs)


class _SlimQuantO:
    name = "slim-quant-o"
    paper = "arXiv:2410.09615"
    config = SlimQuantOConfig
    needs = Statistic.X_NORM | Statistic.X_MEAN_ABS

    def problem(self, shape: tuple[int, int], config: SlimQuantOConfig) -> str | None:
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: SlimQuantOConfig
    ) -> CompressedWeight:
        salient = salient_inputs(W, stats, config)
        return requantized(current, compress(current.dequantize(), salient, config), "slim-quant-o")


SLIM_QUANT_O = _SlimQuantO()
