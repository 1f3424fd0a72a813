"""SmoothQuant: move the outliers of inputs into the weights (Xiao et al., arXiv:2211.10438).

Inputs that are rounded to 8 bits lose most where a few channels are far larger than the others.
Input channel j is divided by s_j and column j of the weights is multiplied by it,

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)     (eq. 4),

the largest of all tokens, and of all rows of all linears that read the input.  It rounds nothing:
a recipe adds 8-bit weights (`rtn`) and 8-bit inputs (`compress.inputs`).

`inputs: clipped` is the variant of JSQ's code, which clips inputs before it looks at them.

Differs from the published code: s_j is bounded by 1e-5 below as there, but the maximum of a column
of weights is not; where it is zero, s_j is 1, since nothing reads the channel.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.transforms import Fold, Scaled, TransformTask

LEAST = 1e-5  # of a scale, as in the code


class SmoothQuantConfig(MethodConfig):
    """Defaults are the paper's.

    alpha: how much of the difficulty moves from the inputs (0) into the weights (1)
    into: where inverse scales go: only `norms`, as in the paper, or `all` places that the family
        has, linears among them
    inputs: whose largest are meant: those of 'all', or of 'clipped' ones, each sequence without its
        largest 1%
    """

    alpha: float = Field(default=0.5, ge=0, le=1)
    into: Literal["norms", "all"] = "norms"
    inputs: Literal["all", "clipped"] = "all"

    @property
    def also_needs(self) -> Statistic:
        """The largest of clipped inputs, where they are meant."""
        clipped = self.inputs == "clipped"
        return Statistic.X_MAX_ABS_CLIPPED if clipped else Statistic.NOTHING


def scales(x_max_abs: Tensor, w_max: Tensor, alpha: float) -> Tensor:
    """s (eq. 4).  x_max_abs, w_max: [in]  ->  [in], float32, positive"""
    read = w_max > 0
    found = x_max_abs.pow(alpha) / torch.where(read, w_max, 1.0).pow(1 - alpha)
    return torch.where(read, found, 1.0).clamp_min(LEAST)


def of_inputs(stats: LayerStats, config: SmoothQuantConfig) -> Tensor:
    """The largest magnitude of each input; ConfigError if it was not collected."""
    found = stats.x_max_abs_clipped if config.inputs == "clipped" else stats.x_max_abs
    if found is None:
        msg = "smoothquant: needs the largest inputs; the recipe has no calibration data."
        raise ConfigError(msg)
    return found


class _SmoothQuant:
    """Costs two rounds of statistics: for the scales, and for the steps that follow."""

    name = "smoothquant"
    paper = "arXiv:2211.10438"
    config = SmoothQuantConfig
    needs = Statistic.X_MAX_ABS

    def problem(self, shape: tuple[int, int], config: SmoothQuantConfig) -> str | None:
        return None

    def transform(self, task: TransformTask, config: SmoothQuantConfig) -> Mapping[Fold, Scaled]:
        made = {}
        for fold in task.folds:
            if config.into == "norms" and fold.kind != "norm":
                continue
            x_max_abs = of_inputs(task.stats[fold.linears[0]], config)
            w_max = torch.stack([task.weights[n].float().abs().amax(0) for n in fold.linears])
            made[fold] = Scaled(scales(x_max_abs, w_max.amax(0), config.alpha))
        return made


SMOOTHQUANT = _SmoothQuant()
