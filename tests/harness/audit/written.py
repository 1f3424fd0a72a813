"""Small checkpoints of every layout, packed here by plain loops, with the values they stand for."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

BLOCKS, OUT, IN, GROUP, VOCABULARY = 4, 32, 64, 32, 48
LAYERS = [
    f"model.layers.{block}.{layer}"
    for block in range(BLOCKS)
    for layer in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
]
FIRST, SECOND = LAYERS[0], LAYERS[3]  # the same linear of two blocks


@dataclass
class Written:
    """Tensors and configuration before they are saved.  values: float32 [out, in] by layer"""

    section: dict[str, Any] | None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        config: dict[str, Any] = {"num_hidden_layers": BLOCKS, "dtype": "float16"}
        if self.section is not None:
            config["quantization_config"] = self.section
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(
            {name: tensor.contiguous().clone() for name, tensor in self.tensors.items()},
            folder / "model.safetensors",
        )
        return folder


def _rest(generator: torch.Generator) -> dict[str, Tensor]:
    return {
        "model.embed_tokens.weight": torch.randn(VOCABULARY, IN, generator=generator).half(),
        "lm_head.weight": torch.randn(VOCABULARY, IN, generator=generator).half(),
        "model.norm.weight": torch.ones(IN).half(),
    }


def _grid(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of 0..15, scales and zero points [out, groups], and the values of a linear."""
    codes = torch.randint(0, 16, (OUT, IN), generator=generator)
    scales = (torch.rand(OUT, IN // GROUP, generator=generator) * 0.01 + 0.01).half()
    zeros = torch.randint(5, 11, scales.shape, generator=generator)
    values = torch.empty(OUT, IN)
    for row in range(OUT):
        for column in range(IN):
            group = column // GROUP
            step = float(scales[row, group])
            values[row, column] = step * int(codes[row, column] - zeros[row, group])
    return codes, scales, zeros, values


def words(codes: Tensor, order: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)) -> Tensor:
    """[n, m] of 4 bits -> int32 [n, m / 8].  order: which column each place of a word holds"""
    packed = np.zeros((codes.shape[0], codes.shape[1] // 8), dtype=np.uint32)
    for row in range(codes.shape[0]):
        for word in range(packed.shape[1]):
            for place, column in enumerate(order):
                value = int(codes[row, word * 8 + column])
                packed[row, word] |= np.uint32(value << (4 * place))
    return torch.from_numpy(packed.view(np.int32).copy())


def dense() -> Written:
    generator = torch.Generator().manual_seed(0)
    made = Written(None, _rest(generator))
    for name in LAYERS:
        made.values[name] = torch.randn(OUT, IN, generator=generator).half().float()
        made.tensors[f"{name}.weight"] = made.values[name].half()
    return made


def gptq() -> Written:
    generator = torch.Generator().manual_seed(1)
    section = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}
    made = Written(section, _rest(generator))
    for name in LAYERS:
        *grid, made.values[name] = _grid(generator)
        made.tensors |= {f"{name}.{part}": t for part, t in gptq_parts(*grid).items()}
    return made


def gptq_parts(codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
    """codes: [out, in]   scales, zeros: [out, groups]"""
    return {
        "qweight": words(codes).T,
        "qzeros": words(zeros.T - 1),
        "scales": scales.T,
        "g_idx": torch.arange(codes.shape[1], dtype=torch.int32) // GROUP,
    }


def awq() -> Written:
    generator = torch.Generator().manual_seed(2)
    section = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    made = Written(section, _rest(generator))
    for name in LAYERS:
        *grid, made.values[name] = _grid(generator)
        made.tensors |= {f"{name}.{part}": t for part, t in awq_parts(*grid).items()}
    return made


def awq_parts(codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
    """codes: [out, in]   scales, zeros: [out, groups]"""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(codes.T, order),
        "qzeros": words(zeros.T, order),
        "scales": scales.T,
    }


def compressed_section(form: str, bits: int) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": GROUP}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def pack_quantized() -> Written:
    generator = torch.Generator().manual_seed(3)
    made = Written(compressed_section("pack-quantized", 4), _rest(generator))
    for name in LAYERS:
        *grid, made.values[name] = _grid(generator)
        made.tensors |= {f"{name}.{part}": t for part, t in pack_quantized_parts(*grid).items()}
    return made


def pack_quantized_parts(codes: Tensor, scales: Tensor, zeros: Tensor) -> dict[str, Tensor]:
    """codes: [out, in]   scales, zeros: [out, groups]"""
    return {
        "weight_packed": words(codes),
        "weight_scale": scales,
        "weight_zero_point": words(zeros.T).T,
        "weight_shape": torch.tensor(codes.shape),
    }


def int_quantized() -> Written:
    generator = torch.Generator().manual_seed(4)
    made = Written(compressed_section("int-quantized", 8), _rest(generator))
    for name in LAYERS:
        codes, scales, zeros, made.values[name] = _grid(generator)
        made.tensors |= {
            f"{name}.weight": (codes - 8).to(torch.int8),
            f"{name}.weight_scale": scales,
            f"{name}.weight_zero_point": (zeros - 8).to(torch.int8),
        }
    return made


def nf4() -> Written:
    generator = torch.Generator().manual_seed(5)
    section = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    }
    made = Written(section, _rest(generator))
    table = torch.linspace(-1, 1, 16)
    nested_table = torch.linspace(-1, 1, 256)
    blocks = OUT * IN // 64
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [OUT, IN], "dtype": "float16"}
    state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
    for name in LAYERS:
        codes = torch.randint(0, 16, (OUT * IN,), generator=generator)
        largest = torch.randint(0, 256, (blocks,), generator=generator)
        outer = torch.rand(1, generator=generator) * 0.1 + 0.2
        values = torch.empty(OUT * IN)
        for at in range(OUT * IN):
            block = at // 64
            step = float(nested_table[largest[block]]) * float(outer[block // 256]) + 0.5
            values[at] = step * float(table[codes[at]])
        made.values[name] = values.reshape(OUT, IN)
        made.tensors |= {
            f"{name}.weight": (codes[0::2] * 16 + codes[1::2]).to(torch.uint8)[:, None],
            f"{name}.weight.absmax": largest.to(torch.uint8),
            f"{name}.weight.quant_map": table,
            f"{name}.weight.nested_absmax": outer,
            f"{name}.weight.nested_quant_map": nested_table,
            f"{name}.weight.quant_state.bitsandbytes__nf4": torch.tensor(
                list(json.dumps(state).encode()), dtype=torch.uint8
            ),
        }
    return made


WRITERS: dict[str, Callable[[], Written]] = {
    "dense": dense,
    "gptq": gptq,
    "awq": awq,
    "pack-quantized": pack_quantized,
    "int-quantized": int_quantized,
    "nf4": nf4,
}
_written = cache(lambda name: WRITERS[name]())  # plain loops are slow


def folder(name: str) -> Written:
    """A layout's checkpoint, for the caller to change."""
    return deepcopy(_written(name))


def gguf(path: Path, scale_of: Callable[[int], float] = lambda block: 0.02) -> dict[str, Tensor]:
    """A GGUF file of Q4_0 blocks.  ->  values by name.  scale_of: the scale in a block's layers"""
    from gguf import GGMLQuantizationType, GGUFWriter  # slow to load, and used here only

    generator = np.random.default_rng(6)
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(BLOCKS)
    writer.add_file_type(2)
    values = {}
    for block in range(BLOCKS):
        name = f"blk.{block}.attn_q"
        codes = generator.integers(0, 16, (OUT, IN // 32, 32), dtype=np.uint8)
        scales = np.full((OUT, IN // 32, 1), scale_of(block))
        scales = (scales * generator.uniform(0.9, 1.1, scales.shape)).astype(np.float16)
        packed = codes[..., :16] | (codes[..., 16:] << 4)
        stored = np.concatenate([scales.view(np.uint8), packed], axis=-1).reshape(OUT, -1)
        writer.add_tensor(f"{name}.weight", stored, raw_dtype=GGMLQuantizationType.Q4_0)
        decoded = scales.astype(np.float32) * (codes.astype(np.float32) - 8)
        values[name] = torch.from_numpy(decoded.reshape(OUT, IN))
    for name in ("token_embd", "output"):
        plain = generator.standard_normal((VOCABULARY, IN)).astype(np.float16)
        writer.add_tensor(f"{name}.weight", plain)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values
