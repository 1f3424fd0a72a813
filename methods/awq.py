"""AWQ: scale input channels so that those that matter are rounded finely (arXiv:2306.00978).

Column j of the weights that read an input is multiplied by s_j before it is rounded, and the input
is divided by it where it is made: the error of what a large input meets becomes smaller.  With x_j
the mean magnitude of input j,

    s = x^alpha,  alpha in 0, 1/20, ..., 19/20,  s divided by sqrt(max(s) min(s))     (eq. 5),

and alpha is the one with which the block, its weights rounded as Q(W diag(s)) diag(s)^-1, gives
what is closest to its outputs.  `awq` chooses and moves the scales and rounds nothing: `awq-clip`
or any quantizer follows.

Differs from the published code:
- The error is that of the block's outputs.  The code takes those of the attention for query, key
  and value, and those of the linear itself for the output projection.  For both parts of the MLP
  that is the same thing.
- The grid is `rtn`'s.  Scales are rounded to their stored type.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor

from trinity.methods import rtn
from trinity.methods.contract import LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.transforms import Fold, Scaled, TransformTask

LEAST = 1e-4  # of a scale before it is normalized, as in the code


class AwqConfig(rtn.RtnConfig):
    """The grid that weights will be rounded to, and the search; defaults are the paper's.

    alphas: how many are tried, from 0 in equal steps below 1
    loss: what is smallest: the squared error of the `block`'s outputs, or of those of the `layers`
        that read the input, summed (from their second moments: no run of the block)
    sequences: of the calibration text that `loss: block` runs for every alpha; null is all of them
    """

    symmetric: bool = False
    alphas: PositiveInt = 20
    loss: Literal["block", "layers"] = "block"
    sequences: PositiveInt | None = None

    @property
    def also_needs(self) -> Statistic:
        """Second moments, where they stand for the outputs."""
        return Statistic.HESSIAN if self.loss == "layers" else Statistic.NOTHING


def scales(x_mean_abs: Tensor, alpha: float) -> Tensor:
    """s (eq. 5).  x_mean_abs: [in]  ->  [in], float32, positive"""
    found = x_mean_abs.pow(alpha).clamp_min(LEAST)
    return found / (found.max() * found.min()).sqrt()


def rounded(W: Tensor, s: Tensor, config: rtn.RtnConfig) -> Tensor:
    """Q(W diag(s)) diag(s)^-1.  W: [out, in]  s: [in]"""
    return rtn.compress(W * s, config).dequantize() / s


def layers_error(W: Tensor, found: Tensor, H: Tensor) -> float:
    """tr(D H D^T), D = found - W: the squared error of the outputs.  W: [out, in]  H: [in, in]"""
    D = found - W
    return float(((D @ H) * D).sum())


class Search:
    """The outputs of one block, and how far weights that are rounded move them."""

    def __init__(self, task: TransformTask, config: AwqConfig) -> None:
        """Run the block once for every sequence, where outputs are compared."""
        self.task, self.config = task, config
        self.inputs = task.inputs[: config.sequences] if config.loss == "block" else ()
        self.outputs = [task.forward(task.weights, x).float() for x in self.inputs]

    def error(self, fold: Fold, s: Tensor) -> float:
        """The loss with the linears of a fold rounded under a scale, all others as they are."""
        weights = self.task.weights
        made = {name: rounded(weights[name], s, self.config) for name in fold.linears}
        if self.config.loss == "layers":
            found = 0.0
            for name, W in made.items():
                H = self.task.stats[name].H
                if H is None:
                    msg = "awq: needs input statistics (H); the recipe has no calibration data."
                    raise ConfigError(msg)
                found += layers_error(weights[name], W, H)
            return found
        losses = [
            float((self.task.forward({**weights, **made}, x).float() - y).square().mean())
            for x, y in zip(self.inputs, self.outputs, strict=True)
        ]
        return sum(losses) / len(losses)

    def best(self, fold: Fold) -> Scaled:
        """The scale with the smallest error; of equal ones that of the smaller alpha."""
        x_mean_abs = of_inputs(self.task.stats[fold.linears[0]])
        count, tried = self.config.alphas, []
        for step in range(count):
            s = scales(x_mean_abs, step / count)
            tried.append((self.error(fold, s), step, s))
        error, step, s = min(tried, key=lambda one: one[:2])
        told = {"alpha": step / count, "error": error, "error_without_scale": tried[0][0]}
        return Scaled(s, told)


def of_inputs(stats: LayerStats) -> Tensor:
    """The mean magnitude of each input; ConfigError if it was not collected."""
    if stats.x_mean_abs is None:
        msg = "awq: needs mean input magnitudes; the recipe has no calibration data."
        raise ConfigError(msg)
    return stats.x_mean_abs


class _Awq:
    """Costs two rounds of statistics, and for every place that takes a scale a run of the block on
    the calibration text for each alpha (`loss: layers` runs nothing).
    """

    name = "awq"
    paper = "arXiv:2306.00978"
    config = AwqConfig
    needs = Statistic.X_MEAN_ABS

    def problem(self, shape: tuple[int, int], config: AwqConfig) -> str | None:
        return rtn.problem(shape, config)

    def transform(self, task: TransformTask, config: AwqConfig) -> Mapping[Fold, Scaled]:
        for W in task.weights.values():
            if found := self.problem((W.shape[0], W.shape[1]), config):
                raise ConfigError(f"awq: {found}.")
        search = Search(task, config)
        return {fold: search.best(fold) for fold in task.folds}


AWQ = _Awq()
