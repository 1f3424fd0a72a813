"""Which decoder blocks are built as LLaMA's are, and what their attention is."""

from trinity.lowering.kernels.decoder_parts import Heads
from trinity.lowering.plan import Lowering

FAMILIES = {"llama": (), "mistral": (), "qwen2": ("q_proj", "k_proj", "v_proj")}
"""Architectures whose blocks are as `BlockFormat` has them, and their linears with a bias."""


def heads_of(plan: Lowering, tokens: int) -> dict[str, Heads]:
    """The attention of each block in a step of so many tokens, by the block's name."""
    config, geometry, shape = plan.config, plan.geometry, plan.shape(tokens)
    found = {}
    for i in range(geometry.layers):
        sliding = geometry.layer_types is None or geometry.layer_types[i] == "sliding_attention"
        found[f"model.layers.{i}"] = Heads(
            config.num_attention_heads,
            geometry.kv_heads,
            geometry.head_dim,
            shape.cache_length,
            geometry.window if sliding else None,
            geometry.head_dim**-0.5,
            plan.cache,
        )
    return found
