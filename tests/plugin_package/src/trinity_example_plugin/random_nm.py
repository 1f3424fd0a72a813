"""Random N:M pruning: the floor that every other pruning criterion has to beat."""

import torch
from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, CompressedWeight, Unstructured
from trinity.methods.options import PatternOption
from trinity.methods.tensors import masked, nm_mask, pattern_problem


class RandomNMConfig(MethodConfig):
    """pattern: N:M   seed: of the scores; layers of one shape get one mask."""

    pattern: PatternOption = NM(2, 4)
    seed: int = 0


def mask(W: Tensor, pattern: NM, seed: int) -> Tensor:
    """Keep the highest of random scores.  W: [out, in]  ->  bool [out, in]"""
    generator = torch.Generator(W.device).manual_seed(seed)
    return nm_mask(torch.rand(W.shape, generator=generator, device=W.device), pattern)


class _RandomNM:
    name = "random-nm"
    paper = "baseline"
    config = RandomNMConfig
    needs = Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: RandomNMConfig) -> str | None:
        if isinstance(config.pattern, Unstructured):
            return f"pattern {config.pattern} is not N:M"
        return pattern_problem(shape, config.pattern)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: RandomNMConfig
    ) -> CompressedWeight:
        pattern = config.pattern
        if not isinstance(pattern, NM):
            msg = f"random-nm: pattern {pattern} is not N:M."
            raise ConfigError(msg)
        return masked(current, mask(W, pattern, config.seed), pattern, "random-nm")


RANDOM_NM = _RandomNM()
