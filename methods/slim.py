"""SLiM, whole: quantize, prune with Wanda, fit adapters (Mozaffari et al., arXiv:2410.09615).

Paper and published code end differently, and both are here:

- `algorithm-2` (default, the paper): the adapter is fitted to the error of quantizing and masking
  W, and W^C stays what it was. It is the recipe `slim-quant`, `wanda`, `slim-lora` in one step.
- `refit` (the code): then W^C = quantize(mask(W - B A)), with a new scale. Kept weights are left
  with quantization error only.

The paper's is the default because it is what the method is defined as, and because it is better or
equal where both were measured (docs/methods/slim-lora.md), although `refit` has the smaller error
in most layers.

The mask always comes from the original weight. Another pruner is another recipe: `slim-lora` after
any steps that quantize and prune.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from trinity.methods import rtn, slim_lora, slim_quant, slim_quant_o, wanda
from trinity.methods.adapters import adapter_problem
from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Adapted, CompressedWeight, Dense, Quantized, Sparse
from trinity.methods.options import Bits, PatternOption
from trinity.methods.tensors import pattern_problem


class SlimConfig(slim_lora.SlimLoraConfig):
    """Defaults are those of the published scripts, but for `adapter`.

    quantizer: 'slim-quant' (searched per-tensor scale), 'slim-quant-o' (salient inputs on a finer
        grid) or 'absmax' (per-tensor AbsMax)
    adapter: see the module's text
    """

    pattern: PatternOption
    bits: Bits = 4
    quantizer: Literal["slim-quant", "slim-quant-o", "absmax"] = "slim-quant"
    objective: slim_quant.Objective = "reference"
    norm: Literal["plain", "shifted"] = "shifted"
    adapter: Literal["algorithm-2", "refit"] = "algorithm-2"


def quantizer_of(W: Tensor, stats: LayerStats, config: SlimConfig) -> Callable[[Tensor], Quantized]:
    """One scale for the whole of a tensor [out, in].

    W: the original weight, whose salient inputs they are
    """
    if config.quantizer == "absmax":
        absmax = rtn.RtnConfig(bits=config.bits, group_size="tensor", scale_dtype="float32")
        return lambda V: rtn.compress(V, absmax)
    if config.quantizer == "slim-quant":
        plain = slim_quant.SlimQuantConfig(bits=config.bits, objective=config.objective)
        return lambda V: slim_quant.compress(V, plain)
    aware = slim_quant_o.SlimQuantOConfig(bits=config.bits, objective=config.objective)
    salient = slim_quant_o.salient_inputs(W, stats, aware)
    return lambda V: slim_quant_o.compress(V, salient, aware)


def compress(W: Tensor, stats: LayerStats, config: SlimConfig) -> Adapted:
    """Quantize, prune, fit.  W: [out, in]"""
    if stats.x_norm is None:
        msg = "slim: needs input norms; the recipe has no calibration data."
        raise ConfigError(msg)
    pruner = wanda.WandaConfig(pattern=config.pattern, norm=config.norm)
    quantized = quantizer_of(W, stats, config)
    sparse = wanda.compress(W, quantized(W), stats.x_norm, pruner)
    adapted = slim_lora.compress(W, sparse, stats, config)
    if config.adapter == "algorithm-2":
        return adapted
    # The stored factors, not the exact ones: W^C then also makes up for their rounding.
    remainder = W - adapted.product()
    # As in the code, the scale is searched on the masked remainder.
    refitted = quantized(remainder.masked_fill(~sparse.mask, 0))
    return Adapted(Sparse(refitted, sparse.mask, sparse.pattern), adapted.B, adapted.A)


class _Slim:
    name = "slim"
    paper = "arXiv:2410.09615"
    config = SlimConfig
    needs = Statistic.X_NORM | Statistic.X_MEAN_ABS

    def problem(self, shape: tuple[int, int], config: SlimConfig) -> str | None:
        return pattern_problem(shape, config.pattern) or adapter_problem(shape, config)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: SlimConfig
    ) -> CompressedWeight:
        if not isinstance(current, Dense):
            msg = "slim: quantizes, prunes and adapts in one step; remove the steps before it."
            raise ConfigError(msg)
        return compress(W, stats, config)


SLIM = _Slim()
