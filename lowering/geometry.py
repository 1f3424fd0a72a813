"""Sizes of a decoder and of its compiled steps."""

import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Geometry:
    """What of a decoder's architecture a step must know.

    layer_types: 'full_attention' or 'sliding_attention' of every block, if the model takes one mask
        a type; None if it takes one mask
    window: positions that a sliding layer sees, its own included; None without sliding layers
    """

    layers: int
    kv_heads: int
    head_dim: int
    max_positions: int
    layer_types: tuple[str, ...] | None
    window: int | None

    @staticmethod
    def of(config: Any) -> "Geometry":  # Any: transformers' config, which lowering must not import
        """Read a Hugging Face configuration."""
        heads = config.num_attention_heads
        types = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            window = None
        return Geometry(
            config.num_hidden_layers,
            _kv_heads(config),
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            getattr(config, "max_position_embeddings", None) or sys.maxsize,
            tuple(types) if types else None,
            window,
        )


def _kv_heads(config: Any) -> int:
    """Heads of a cache.  Falcon keeps one for all queries, or as many as they are."""
    heads: int = config.num_attention_heads
    if config.model_type == "falcon":
        one = config.multi_query and not config.new_decoder_architecture
        return 1 if one else heads
    return getattr(config, "num_key_value_heads", None) or heads


@dataclass(frozen=True)
class StepShape:
    """Fixed sizes of one compiled step.

    tokens: T of each sequence, 1 to decode   max_length: longest sequence   cache_length: caches,
    room for a padded tail   batch: sequences, all at the same position
    """

    tokens: int
    max_length: int
    cache_length: int
    batch: int = 1
