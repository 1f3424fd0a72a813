"""Decoder blocks, or their attention, that a kernel of ours takes whole: which those are, and how a
graph calls it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from trinity.lowering.kernels.flash import AttentionFormat, attention_refusal
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
    """Blocks of a float32 model, by name, that the kernel for one token takes: linears all in
    panels.
    """
    plain = not getattr(config, "attention_bias", False) and not getattr(config, "mlp_bias", False)
    if config.model_type not in FAMILIES or not plain or config.hidden_act != "silu":
        return {}
    if shape.tokens * shape.batch != 1:
        return {}
    found = {}
    for name, heads in _heads(config, shape).items():
        linears = {key: formats.get(f"{name}.{key}") for key in LINEARS}
        if None in linears.values():
            continue
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


def attention_formats(
    config: Any,  # as above
    shape: StepShape,
) -> dict[str, AttentionFormat]:
    """Blocks of a float32 model, by name, whose attention the kernel for many tokens takes."""
    if config.model_type not in FAMILIES or shape.batch != 1 or shape.tokens == 1:
        return {}
    found = {
        name: AttentionFormat(heads, shape.tokens) for name, heads in _heads(config, shape).items()
    }
    return {name: of for name, of in found.items() if attention_refusal(of) is None}


def _heads(config: Any, shape: StepShape) -> dict[str, Heads]:
    """The attention of each block, by the block's name."""
    geometry, found = Geometry.of(config), {}
    for i in range(geometry.layers):
        sliding = geometry.layer_types is None or geometry.layer_types[i] == "sliding_attention"
        found[f"model.layers.{i}"] = Heads(
            config.num_attention_heads,
            geometry.kv_heads,
            geometry.head_dim,
            shape.cache_length,
            geometry.window if sliding else None,
            geometry.head_dim**-0.5,
        )
    return found


torch.library.define(
    "trinity::packed_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor position, Tensor keys, "
    "Tensor values, str block) -> (Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("trinity::packed_attention")  # type: ignore[untyped-decorator]  # torch's
def _packed_attention_shape(q: Tensor, *others: Tensor | str) -> tuple[Tensor, Tensor, Tensor]:
    keys, values = others[-3:-1]
    assert isinstance(keys, Tensor)
    assert isinstance(values, Tensor)
    return torch.empty_like(q), torch.empty_like(keys), torch.empty_like(values)


class PackedAttention(nn.Module):
    """A block's attention over many tokens, for export only: `trinity::packed_attention` between
    the linears.
    """

    def __init__(self, original: nn.Module, name: str) -> None:
        """original: whose linears stay   name: of the block"""
        super().__init__()
        for linear in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, linear, original.get_submodule(linear))
        self.name = name

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: Any,  # an `ArgumentCache`
        **_unused: object,
    ) -> tuple[Tensor, None]:
        """hidden_states: [1, T, hidden] -> the same shape; the caches are written in place."""
        q, k, v = (
            self.get_submodule(name)(hidden_states) for name in ("q_proj", "k_proj", "v_proj")
        )
        keys, values = past_key_values.of(int(self.name.rpartition(".")[2]))
        found, new_keys, new_values = torch.ops.trinity.packed_attention(
            q, k, v, *position_embeddings, past_key_values.positions, keys, values, self.name
        )
        keys.copy_(new_keys)
        values.copy_(new_values)
        return self.get_submodule("o_proj")(found), None


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

    def __init__(self, name: str) -> None:
        """name: of the block"""
        super().__init__()
        self.name = name

    def forward(
        self,
        hidden_states: Tensor,
        *,
        past_key_values: Any,  # an `ArgumentCache`
        position_embeddings: tuple[Tensor, Tensor],
        **_unused: object,
    ) -> Tensor:
        """hidden_states: [1, 1, hidden] -> the same shape; the caches are written in place."""
        keys, values = past_key_values.of(int(self.name.rpartition(".")[2]))
        found: Tensor
        found, new_keys, new_values = torch.ops.trinity.packed_block(
            hidden_states, *position_embeddings, past_key_values.positions, keys, values, self.name
        )
        keys.copy_(new_keys)
        values.copy_(new_values)
        return found


@contextmanager
def packed_blocks(
    model: nn.Module, blocks: Iterable[str], attentions: Iterable[str]
) -> Iterator[None]:
    """Replace the named blocks, and the attention of others, and restore them."""
    original = {name: model.get_submodule(name) for name in blocks}
    made: dict[str, nn.Module] = {name: PackedBlock(name) for name in original}
    for name in attentions:
        place = f"{name}.self_attn"
        original[place] = model.get_submodule(place)
        made[place] = PackedAttention(original[place], name)
    try:
        for name, module in made.items():
            replace_layer(model, name, module)
        yield
    finally:
        for name, module in original.items():
            replace_layer(model, name, module)


def attention_call(attention: AttentionFormat) -> PackedCall:
    """The call of an attention, the same at every stage."""
    inputs = {key: tensor_type(*of) for key, of in attention.activations().items()}
    results = tuple(inputs[key] for key in ("q", "keys", "values"))
    return PackedCall(attention.function, None, tuple(inputs.values()), results, ())


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
