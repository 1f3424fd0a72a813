"""Reads a checkpoint of N:M sparse weights that are stored dense, with zeros."""

from collections.abc import Mapping

from torch import Tensor

from trinity.methods.contract import MethodConfig
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, CompressedWeight, Dense, Sparse
from trinity.methods.options import PatternOption
from trinity.methods.tensors import nm_mask, pattern_problem

SUFFIX = ".weight"


class NMCheckpointConfig(MethodConfig):
    """pattern: what the zeros must obey."""

    pattern: PatternOption = NM(2, 4)


def sparse(layer: str, W: Tensor, pattern: NM) -> Sparse:
    """W: [out, in], with zeros  ->  the same numbers, sparse; ConfigError if they are not N:M."""
    if problem := pattern_problem((W.shape[0], W.shape[1]), pattern):
        msg = f"nm-checkpoint: {layer}: {problem}."
        raise ConfigError(msg)
    mask = nm_mask(W.abs().float(), pattern)
    extra = int((W[~mask] != 0).sum())
    if extra:
        msg = (
            f"nm-checkpoint: {layer}: {extra} weights are not zero that {pattern} would remove. "
            f"Is the checkpoint pruned to another pattern?"
        )
        raise ConfigError(msg)
    return Sparse(Dense(W.clone()), mask, pattern)


class _NMCheckpoint:
    name = "nm-checkpoint"
    paper = "baseline"
    config = NMCheckpointConfig
    parts = ("weight",)

    def load(
        self, tensors: Mapping[str, Tensor], config: NMCheckpointConfig
    ) -> Mapping[str, CompressedWeight]:
        if not isinstance(config.pattern, NM):
            msg = f"nm-checkpoint: pattern {config.pattern} is not N:M."
            raise ConfigError(msg)
        return {
            key.removesuffix(SUFFIX): sparse(key.removesuffix(SUFFIX), W, config.pattern)
            for key, W in tensors.items()
            if key.endswith(SUFFIX) and W.ndim == 2
        }


NM_CHECKPOINT = _NMCheckpoint()
