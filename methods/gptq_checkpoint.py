"""The GPTQ checkpoint format, as AutoGPTQ and GPTQModel write it: reading and writing.

| tensor  | shape, type                      | holds                                              |
|---------|----------------------------------|----------------------------------------------------|
| qweight | [in * bits / 32, out], int32     | codes, a stream of bits down each output's column  |
| qzeros  | [groups, out * bits / 32], int32 | zero points, a stream of bits along each group     |
| scales  | [groups, out], float             | step of every group                                |
| g_idx   | [in], int32                      | group of every input                               |

The weight is scales * (code - zero point).  Version `gptq` stores each zero point less one,
`gptq_v2` as it is.  A zero point of 0 therefore wraps in `gptq`, and its readers disagree about it:
it is read as 0 here and never written.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from trinity.methods.contract import MethodConfig
from trinity.methods.errors import ConfigError, UnsupportedError
from trinity.methods.formats import CompressedWeight, Quantized, Sparse
from trinity.methods.formats.quantized import BITS

Version = Literal["gptq", "gptq_v2"]
WORD = 32
PARTS = ("qweight", "qzeros", "scales", "g_idx")
ENOUGH = 32  # equal zero points that cannot be a coincidence


class GptqCheckpointConfig(MethodConfig):
    """checkpoint_format: as in quantize_config.json, where a missing entry means 'gptq'."""

    checkpoint_format: Version = "gptq"


def load(tensors: Mapping[str, Tensor], version: Version) -> dict[str, Quantized]:
    """Every quantized linear among a checkpoint's tensors, by the name of its module."""
    names = [key.removesuffix(".qweight") for key in tensors if key.endswith(".qweight")]
    if not names:
        msg = (
            "gptq-checkpoint: no tensor is called '<layer>.qweight'; this is no GPTQ checkpoint, "
            "or it is another of its formats (marlin, awq)."
        )
        raise ConfigError(msg)
    found = {}
    for name in names:
        parts = {part: tensors[key] for part in PARTS if (key := f"{name}.{part}") in tensors}
        try:
            found[name] = read_layer(parts, version)
        except ConfigError as error:
            raise type(error)(f"{name}: {error}") from error
    return found


def read_layer(parts: Mapping[str, Tensor], version: Version) -> Quantized:
    """One linear from its tensors, named as in the table above; symmetric if its zero points are.

    The number of bits is what the shapes say; codes and scales are kept bit for bit.
    """
    missing = sorted({"qweight", "qzeros", "scales"} - set(parts))
    if missing:
        msg = f"gptq-checkpoint: {', '.join(missing)} is missing; found {sorted(parts)}."
        raise ConfigError(msg)
    bits, d_in = _sizes(parts)
    groups, out = parts["scales"].shape
    stored = unpack_stream(parts["qzeros"].T, bits, out).T
    half = 2 ** (bits - 1)
    if version == "gptq" and stored.numel() >= ENOUGH and bool((stored == half).all()):
        msg = (
            f"gptq-checkpoint: every stored zero point is {half}, the middle of {bits} bits, where "
            f"`gptq` stores {half - 1}. The file is in `gptq_v2`, whatever its configuration says: "
            f"set checkpoint_format=gptq_v2."
        )
        raise ConfigError(msg)
    zero = stored if version == "gptq_v2" else (stored.to(torch.int16) + 1) % 2**bits
    codes = unpack_stream(parts["qweight"], bits, d_in).T.contiguous()
    scale, index = parts["scales"].T.contiguous(), _index(parts.get("g_idx"), d_in, groups)
    if bool((zero == half).all()):
        signed = (codes.to(torch.int16) - half).to(torch.int8)
        return Quantized(signed, scale, None, bits, index)
    return Quantized(codes, scale, zero.to(torch.uint8).T.contiguous(), bits, index)


def write_layer(weight: CompressedWeight, version: Version) -> dict[str, Tensor]:
    """The tensors of a quantized linear; UnsupportedError if the format cannot hold it exactly.

    A pruned entry becomes the code of zero: the values are kept, the mask is not stored.
    """
    base = weight.values if isinstance(weight, Sparse) else weight
    if not isinstance(base, Quantized):
        msg = f"the GPTQ format holds quantized weights only, not {type(weight).__name__.lower()}."
        raise UnsupportedError(msg)
    out, d_in = base.shape
    if d_in * base.bits % WORD or out * base.bits % WORD:
        msg = (
            f"the GPTQ format fills words of {WORD} bits, and {base.bits} bits do not in a layer "
            f"[{out}, {d_in}]."
        )
        raise UnsupportedError(msg)
    scale = base.scale.half()
    if not torch.equal(scale.float(), base.scale.float()):
        msg = (
            "the GPTQ format stores scales as float16, and these do not fit exactly: quantize "
            "with `scale_dtype: float16`."
        )
        raise UnsupportedError(msg)
    codes, zero = _unsigned(base)
    if version == "gptq" and bool((zero == 0).any()):
        msg = (
            "a zero point is 0, which version `gptq` stores less one and its readers do not agree "
            "on. Export as gptq_v2, or quantize symmetrically."
        )
        raise UnsupportedError(msg)
    if isinstance(weight, Sparse):
        codes = torch.where(weight.mask, codes, base.by_input(zero).expand(codes.shape))
    groups = base.scale.shape[1]
    index = base.group_index
    if index is None:
        places = torch.arange(d_in, dtype=torch.int32, device=codes.device)
        index = places // base.group_size
    stored = (zero - int(version == "gptq")).expand(out, groups)
    return {
        "qweight": pack_stream(codes.T, base.bits),
        "qzeros": pack_stream(stored, base.bits).T.contiguous(),
        "scales": scale.expand(out, groups).T.contiguous(),
        "g_idx": index,
    }


def pack_stream(values: Tensor, bits: int) -> Tensor:
    """Values as one stream of bits down every column, the first in the lowest bits of a word.

    values: uint8 [n, columns]  ->  int32 [n * bits / 32, columns]; 3-bit values cross words
    """
    words = torch.arange(len(values) * bits // WORD, device=values.device)
    packed = torch.zeros(len(words), values.shape[1], dtype=torch.int32, device=values.device)
    for bit in range(WORD):
        place = words * WORD + bit
        taken = values.index_select(0, place // bits) >> (place % bits).to(torch.uint8)[:, None]
        packed |= (taken & 1).to(torch.int32) << bit
    return packed


def unpack_stream(packed: Tensor, bits: int, n: int) -> Tensor:
    """Inverse of `pack_stream`.  packed: int32 [words, columns]  ->  uint8 [n, columns]"""
    values = torch.zeros(n, packed.shape[1], dtype=torch.uint8, device=packed.device)
    for bit in range(bits):
        place = torch.arange(n, device=packed.device) * bits + bit
        taken = packed.index_select(0, place // WORD) >> (place % WORD).to(torch.int32)[:, None]
        values |= (taken & 1).to(torch.uint8) << bit
    return values


def _sizes(parts: Mapping[str, Tensor]) -> tuple[int, int]:
    """(bits, in) as the shapes say; ConfigError if they do not agree."""
    shapes = {name: list(tensor.shape) for name, tensor in parts.items()}
    if all(tensor.ndim == (1 if name == "g_idx" else 2) for name, tensor in parts.items()):
        groups, out = parts["scales"].shape
        words, columns = parts["qweight"].shape
        for bits in BITS:
            d_in = words * WORD // bits
            index = parts.get("g_idx")
            fits = [
                parts["qzeros"].shape == (groups, out * bits // WORD),
                out * bits % WORD == 0,
                columns == out,
                words * WORD == d_in * bits,
                index is None or len(index) == d_in,
            ]
            if all(fits) and not any(
                parts[name].dtype != torch.int32 for name in ("qweight", "qzeros")
            ):
                return bits, d_in
    msg = (
        f"gptq-checkpoint: {shapes} are no linear of {', '.join(map(str, BITS))} bits: expected "
        f"qweight [in * bits / 32, out] and qzeros [groups, out * bits / 32] in int32, scales "
        f"[groups, out], g_idx [in]."
    )
    raise ConfigError(msg)


def _index(index: Tensor | None, d_in: int, groups: int) -> Tensor | None:
    """The group index, or None where groups are consecutive inputs.

    Writers that know no order leave g_idx out, or zero: an index that uses one of many groups.
    """
    if index is None or (groups > 1 and not bool(index.any())):
        return None
    consecutive = torch.arange(d_in, device=index.device) // -(-d_in // groups)
    if d_in % groups == 0 and torch.equal(index.long(), consecutive):
        return None
    return index.to(torch.int32)


def _unsigned(base: Quantized) -> tuple[Tensor, Tensor]:
    """Codes and zero points as stored.  -> uint8 [out, in], uint8 [1 | out, groups]"""
    if base.zero_point is not None:
        return base.codes, base.zero_point
    half = 2 ** (base.bits - 1)
    codes = (base.codes.to(torch.int16) + half).to(torch.uint8)
    zero = torch.full(base.scale.shape, half, dtype=torch.uint8, device=codes.device)
    return codes, zero


class _GptqCheckpoint:
    name = "gptq-checkpoint"
    paper = "arXiv:2210.17323"
    config = GptqCheckpointConfig
    parts = PARTS

    def load(
        self, tensors: Mapping[str, Tensor], config: GptqCheckpointConfig
    ) -> Mapping[str, CompressedWeight]:
        return load(tensors, config.checkpoint_format)


GPTQ_CHECKPOINT = _GptqCheckpoint()
