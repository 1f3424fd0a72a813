"""A tiny Llama in every layout that an audit reads, rounded to the layout's grid by plain rules."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.harness import tokenizers
from tests.harness.audit import written
from tests.harness.audit.written import GROUP

BLOCKS, WIDTH, HEADS = 4, 64, 4
QUERIES = ("self_attn.q_proj", "self_attn.k_proj")
VICTIM = "model.layers.2.mlp.up_proj"
Weights = dict[str, Tensor]


def config(**changes: int) -> LlamaConfig:
    sizes = {
        "vocab_size": 272,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 128,
    }
    return LlamaConfig(**{**sizes, **changes}, tie_word_embeddings=False)


@cache
def dense_weights() -> Weights:
    """Of a model whose outputs depend on its linears: standard deviations of a trained one."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = LlamaForCausalLM(config())
    torch.random.set_rng_state(state)
    return {
        name: tensor * (6.0 if tensor.ndim == 2 else 1.0)
        for name, tensor in model.state_dict().items()
    }


def linears() -> list[str]:
    return [
        name.removesuffix(".weight") for name in dense_weights() if name.endswith("_proj.weight")
    ]


def save_dense(folder: Path) -> Path:
    _save(folder, dense_weights(), None)
    tokenizers.KINDS["byte-level, BOS"]().save_pretrained(folder)
    return folder


def grid_of(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[out, in] -> codes of 0..15 [out, in], scales float16 and zero points [out, groups]"""
    groups = weight.reshape(len(weight), -1, GROUP)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(1, 15).long()
    codes = (groups / scales.float()[..., None]).round() + zeros[..., None]
    return codes.clamp(0, 15).long().reshape(weight.shape), scales, zeros


def decoded(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    groups = codes.reshape(len(codes), -1, GROUP) - zeros[..., None]
    return (groups * scales.float()[..., None]).reshape(codes.shape)


def nf4_parts(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of one linear, and the values that they stand for: blocks of 64, a linear table."""
    table = torch.linspace(-1, 1, 16)
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(-1)
    codes = ((blocks / largest[:, None] + 1) * 7.5).round().long().flatten()
    state = {"quant_type": "nf4", "blocksize": 64, "shape": list(weight.shape), "dtype": "float32"}
    parts = {
        "weight": (codes[0::2] * 16 + codes[1::2]).to(torch.uint8)[:, None],
        "weight.absmax": largest,
        "weight.quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }
    return parts, (table[codes].reshape(-1, 64) * largest[:, None]).reshape(weight.shape)


OF_GRID: dict[str, tuple[dict[str, Any], Callable[..., dict[str, Tensor]]]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False},
        written.gptq_parts,
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"},
        written.awq_parts,
    ),
    "pack-quantized": (
        written.compressed_section("pack-quantized", 4),
        written.pack_quantized_parts,
    ),
}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
LAYOUTS = (*OF_GRID, "nf4", "gguf")


def save(layout: str, place: Path, weights: Weights) -> tuple[Path, Weights]:
    """A checkpoint of these weights  ->  its path, and the values of its linears."""
    if layout == "gguf":
        return _save_gguf(place.with_suffix(".gguf"), weights)
    tensors: Weights = {}
    values: Weights = {}
    section = NF4 if layout == "nf4" else OF_GRID[layout][0]
    for name, tensor in weights.items():
        layer = name.removesuffix(".weight")
        if layer not in linears():
            tensors[name] = tensor
            continue
        if layout == "nf4":
            parts, values[layer] = nf4_parts(tensor)
        else:
            grid = grid_of(tensor)
            parts, values[layer] = OF_GRID[layout][1](*grid), decoded(*grid)
        tensors |= {f"{layer}.{part}": t for part, t in parts.items()}
    _save(place, tensors, section)
    return place, values


def _save(folder: Path, tensors: Weights, section: dict[str, Any] | None) -> None:
    folder.mkdir()
    settings = {**config().to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    if section is not None:
        settings["quantization_config"] = section
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    held = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _save_gguf(path: Path, weights: Weights) -> tuple[Path, Weights]:
    """Q4_0 linears, the rest as float32, as llama.cpp's converter lays a Llama out."""
    from gguf import GGMLQuantizationType, GGUFWriter  # slow to load, and used here only

    writer = GGUFWriter(path, "llama")
    writer.add_file_type(2)
    writer.add_block_count(BLOCKS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config().rms_norm_eps)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(config().vocab_size)
    values: Weights = {}
    for name, tensor in weights.items():
        layer = name.removesuffix(".weight")
        block, _, part = layer.removeprefix("model.layers.").partition(".")
        called = NAMES.get(layer) or f"blk.{block}.{NAMES[part]}"
        stored = tensor
        if part in QUERIES:
            halves = tensor.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH)
            stored = halves.swapaxes(1, 2).reshape(tensor.shape)
        if layer not in linears():
            writer.add_tensor(f"{called}.weight", stored.numpy())
            continue
        packed, kept = _q4_0(stored)
        if part in QUERIES:
            halves = kept.reshape(HEADS, WIDTH // HEADS // 2, 2, WIDTH)
            kept = halves.swapaxes(1, 2).reshape(tensor.shape)
        values[layer] = kept
        writer.add_tensor(f"{called}.weight", packed, raw_dtype=GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, values


def _q4_0(weight: Tensor) -> tuple[np.ndarray[Any, Any], Tensor]:
    """[out, in] -> blocks of 32: a float16 scale, codes 0..15 in halves; and their values."""
    blocks = weight.reshape(len(weight), -1, 32).numpy()
    scales = (np.abs(blocks).max(-1, keepdims=True) / 7).astype(np.float16)
    codes = np.clip(np.round(blocks / scales.astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    packed = codes[..., :16] | (codes[..., 16:] << 4)
    stored = np.concatenate([scales.view(np.uint8), packed], axis=-1).reshape(len(weight), -1)
    values = scales.astype(np.float32) * (codes.astype(np.float32) - 8)
    return stored, torch.from_numpy(values.reshape(weight.shape))


def with_rows_exchanged(layer: str = VICTIM) -> Weights:
    """The dense weights, but those of one linear are in another order: plausible, and wrong."""
    weights = dict(dense_weights())
    weights[f"{layer}.weight"] = weights[f"{layer}.weight"].flip(0)
    return weights


def relative_error(weight: Tensor, other: Tensor) -> float:
    pairs = zip(weight.flatten().tolist(), other.flatten().tolist(), strict=True)
    squares = [((one - two) ** 2, one**2) for one, two in pairs]
    return math.sqrt(sum(delta for delta, _ in squares) / sum(whole for _, whole in squares))
