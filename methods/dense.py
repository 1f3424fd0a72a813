"""Dense: the weight as it is, the baseline of every table."""

from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.formats import CompressedWeight


class DenseConfig(MethodConfig):
    """No options."""


class _Dense:
    name = "dense"
    paper = "baseline"
    config = DenseConfig
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: DenseConfig) -> str | None:
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: DenseConfig
    ) -> CompressedWeight:
        return current


DENSE = _Dense()
