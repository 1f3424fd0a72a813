"""OWL: sparsity by block, less where outliers are many (Yin et al., arXiv:2310.05175).

A block's outlier ratio is the share of its Wanda scores |W_ij| |X_j| that are more than M times
their mean (eq. 1, "layerwise outlier distribution").  Ratios are stretched to a range of
2 lambda and moved so that the mean density of all blocks is the one that was asked for:

    density_b = (D_b - min D) 2 lambda / (max D - min D) - mean(...) + 1 - S.

It gives the pruning step after it a `pattern` for every layer; all layers of a block have the same.

Differs from the published code: ratios are all equal in a model without outliers, where the code
divides by zero; every block then gets the sparsity that was asked for.  A density that leaves 0..1
is refused by name, where the code prunes nothing or all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from trinity.methods import wanda
from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Unstructured, parse_pattern
from trinity.methods.planning import Measured

RATIO = "outlier_ratio"


class OwlConfig(MethodConfig):
    """Defaults are the paper's for LLaMA at 70%.

    times: M, how many times the mean of a block's scores an outlier is above
    spread: lambda, half of the range of densities
    """

    times: PositiveFloat = 5.0
    spread: float = Field(default=0.08, ge=0, lt=0.5)


def outlier_ratio(scores: Sequence[Tensor], times: float) -> float:
    """Share of all scores of a block that are above `times` their mean.  scores: [out, in] each"""
    count = sum(S.numel() for S in scores)
    # float64: a sum of 10^7 scores.
    mean = sum(float(S.sum(dtype=torch.float64)) for S in scores) / count
    return sum(int((times * mean < S).sum()) for S in scores) / count


def densities(ratios: Sequence[float], sparsity: float, spread: float) -> list[float]:
    """What each block keeps.  ratios: of every block, in order"""
    low, high = min(ratios), max(ratios)
    if high == low:
        return [1 - sparsity] * len(ratios)
    stretched = [(ratio - low) / (high - low) * 2 * spread for ratio in ratios]
    mean = sum(stretched) / len(stretched)
    return [part - mean + 1 - sparsity for part in stretched]


class _Owl:
    """Costs one more pass of the calibration text through the model, which recipes share."""

    name = "owl"
    paper = "arXiv:2310.05175"
    config = OwlConfig
    needs = Statistic.X_NORM

    def problem(self, shape: tuple[int, int], config: OwlConfig) -> str | None:
        return None

    def measure(
        self, weights: Mapping[str, Tensor], stats: Mapping[str, LayerStats], config: OwlConfig
    ) -> Mapping[str, Mapping[str, float]]:
        scores = []
        for name, W in weights.items():
            x_norm = stats[name].x_norm
            if x_norm is None:
                msg = "owl: needs input norms; the recipe has no calibration data."
                raise ConfigError(msg)
            scores.append(wanda.scores(W, x_norm))
        ratio = outlier_ratio(scores, config.times)
        return {name: {RATIO: ratio} for name in weights}

    def allot(
        self, blocks: Sequence[Mapping[str, Measured]], given: Mapping[str, Any], config: OwlConfig
    ) -> Mapping[str, Mapping[str, Any]]:
        pattern = parse_pattern(str(given["pattern"])) if "pattern" in given else None
        if not isinstance(pattern, Unstructured):
            msg = (
                f"owl: the step after it has the pattern {pattern}, and gives every group the "
                f"same. Give it an unstructured one, such as '50%'."
                if pattern
                else "owl: the step after it has no option `pattern`: put a pruner there."
            )
            raise ConfigError(msg)
        ratios = [next(iter(block.values())).numbers[RATIO] for block in blocks]
        kept = densities(ratios, pattern.sparsity, config.spread)
        for density in (min(kept), max(kept)):
            if not 0 < density < 1:
                msg = (
                    f"owl: a block would keep {density:.1%} of its weights at {pattern}. Lower "
                    f"owl.spread (it is {config.spread})."
                )
                raise ConfigError(msg)
        return {
            name: {"pattern": str(Unstructured(round(1 - density, 6)))}
            for block, density in zip(blocks, kept, strict=True)
            for name in block
        }


OWL = _Owl()
