"""Decoder blocks that a kernel of ours takes whole: which those are, and how a graph calls it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trinity.lowering.annotate import annotated_call
from trinity.lowering.builder import tensor_type
from trinity.lowering.dialects import PackedCall
from trinity.lowering.export import Geometry, StepShape
from trinity.lowering.kernels.attention import Heads
from trinity.lowering.kernels.block import LINEARS, BlockFormat, block_refusal
from trinity.lowering.kernels.terms import Flavour
from trinity.lowering.packed import replace_layer
from trinity.methods.formats import WeightFormat

FAMILIES = {"llama": (), "mistral": (), "qwen2": ("q_proj", "k_proj", "v_proj")}
"""Architectures whose blocks are as `kernels/block.py` has them, and their linears with a bias."""


def block_formats(
    config: Any,  # transformers' PretrainedConfig, which lowering must not import
    formats: Mapping[str, WeightFormat],
    shape: StepShape,
    flavour: Flavour,
) -> dict[str, BlockFormat]:
    """Blocks of a float32 model, by name, whose every linear is compressed and that the kernel
    takes.
    """
    plain = not getattr(config, "attention_bias", False) and not getattr(config, "mlp_bias", False)
    if config.model_type not in FAMILIES or not plain or config.hidden_act != "silu":
        return {}
    if shape.tokens * shape.batch != 1:
        return {}
    geometry, found = Geometry.of(config), {}
    for i in range(geometry.layers):
        name = f"model.layers.{i}"
        linears = {key: formats.get(f"{name}.{key}") for key in LINEARS}
        if None in linears.values():
            continue
        sliding = geometry.layer_types is None or geometry.layer_types[i] == "sliding_attention"
        heads = Heads(
            config.num_attention_heads,
            geometry.kv_heads,
            geometry.head_dim,
            shape.cache_length,
            geometry.window if sliding else None,
            geometry.head_dim**-0.5,
        )
        block = BlockFormat(
            config.hidden_size,
            heads,
            config.rms_norm_eps,
            {key: of for key, of in linears.items() if of},
            tuple(f"self_attn.{bias}" for bias in FAMILIES[config.model_type]),
        )
        if block_refusal(block, flavour) is None:
            found[name] = block
    return found


torch.library.define(
    "trinity::packed_block",
    "(Tensor hidden, Tensor cos, Tensor sin, Tensor position, Tensor keys, Tensor values, "
    "str block) -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("trinity::packed_block")  # type: ignore[untyped-decorator]  # torch's
def _packed_block_shape(
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    position: Tensor,
    keys: Tensor,
    values: Tensor,
    block: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(keys), torch.empty_like(values)


class PackedBlock(nn.Module):
    """A decoder block at one token, for export only: it calls `trinity::packed_block`."""

    def __init__(self, name: str, index: int) -> None:
        """name, index: the block's"""
        super().__init__()
        self.name, self.index = name, index

    def forward(
        self,
        hidden_states: Tensor,
        *,
        past_key_values: Any,  # an `ArgumentCache`
        position_embeddings: tuple[Tensor, Tensor],
        **_unused: object,
    ) -> Tensor:
        """hidden_states: [1, 1, hidden] -> the same shape; the caches are written in place."""
        cache = past_key_values
        keys, values = cache.keys[self.index], cache.values[self.index]
        found: Tensor
        found, new_keys, new_values = torch.ops.trinity.packed_block(
            hidden_states, *position_embeddings, cache.positions, keys, values, self.name
        )
        keys.copy_(new_keys)
        values.copy_(new_values)
        return found


@contextmanager
def packed_blocks(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Replace the named blocks, and restore them."""
    original = {name: model.get_submodule(name) for name in names}
    try:
        for name in original:
            replace_layer(model, name, PackedBlock(name, int(name.rpartition(".")[2])))
        yield
    finally:
        for name, block in original.items():
            replace_layer(model, name, block)


def annotated_block(name: str, block: BlockFormat) -> PackedCall:
    """The annotated call of a block: its arguments say what each weight is."""
    linears = {key: f"{name}.{key}" for key in LINEARS}
    operands = [
        (f"{name}.{key}", tensor_type(*of))
        for key, of in block.parameters().items()
        if key.endswith((".bias", "layernorm.weight"))
    ]
    for key, layer in linears.items():
        operands += annotated_call(layer, block.linears[key], rows=1).operands
    return _call(block, operands)


def storage_block(name: str, block: BlockFormat) -> PackedCall:
    """The same call on stored tensors."""
    return _call(
        block, [(f"{name}.{key}", tensor_type(*of)) for key, of in block.parameters().items()]
    )


def _call(block: BlockFormat, operands: Sequence[tuple[str, str]]) -> PackedCall:
    """Declared only: the body is a kernel of ours."""
    inputs = {key: tensor_type(*of) for key, of in block.activations().items()}
    results = tuple(inputs[key] for key in ("hidden", "keys", "values"))
    return PackedCall(block.function, None, tuple(inputs.values()), results, tuple(operands))
