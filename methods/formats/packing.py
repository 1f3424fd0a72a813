"""Storage of compressed weights: bits in bytes, lossless both ways.

Names follow compressed-tensors and PEFT.  Every tensor is what a file holds, so the bits per weight
counted here are the bits on disk, metadata, scales, zero points and adapters included.

| tensor             | shape, type                                     | when                     |
|--------------------|-------------------------------------------------|--------------------------|
| weight             | [out, in], float                                | dense                    |
| weight_packed      | [out, row bytes], uint8                         | quantized, nothing masked|
|                    | [out, row bytes of n/m * in codes], uint8       | quantized N:M            |
|                    | [bytes of all kept codes], uint8                | quantized unstructured   |
|                    | [out, n/m * in] or [kept], float                | sparse, not quantized    |
| weight_indices     | [out, row bytes of n/m * in indices], uint8     | N:M; ceil(log2 m) bits ea|
| weight_bitmask     | [out, ceil(in / 8)], uint8                      | unstructured             |
| weight_scale       | [1, 1], [out, 1] or [out, groups], float        | quantized                |
| weight_zero_point  | uint8 bytes of bit-packed points                | quantized, asymmetric    |
| weight_g_idx       | [in], int32                                     | groups by index          |
| weight_input_scale | [in], float                                     | quantized, scaled inputs |
| lora_A.weight      | [rank, in], float                               | adapter                  |
| lora_B.weight      | [out, rank], float                              | adapter                  |

A factor that is not plain floats is stored as a weight of its shape, under `lora_A.weight_packed`,
`lora_A.weight_scale` and so on; one that is kept as its transpose, as a weight of that shape.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats.adapter import Adapted, Factor, Transposed
from trinity.methods.formats.dense import Dense
from trinity.methods.formats.layout import CompressedWeight, WeightFormat, format_of
from trinity.methods.formats.quantized import Grid, Quantized
from trinity.methods.formats.sparse import NM, Pattern, Sparse


def pack(weight: CompressedWeight) -> dict[str, Tensor]:
    """The tensors that store a weight, contiguous as files need them; `unpack` is the inverse.

    Where nothing has to be packed, they are the weight's own tensors: read them only.
    """
    if isinstance(weight, Adapted):
        factors = _pack_factor("lora_A", weight.A) | _pack_factor("lora_B", weight.B)
        return pack(weight.base) | factors
    if isinstance(weight, Dense):
        return {"weight": weight.values.contiguous()}
    if isinstance(weight, Quantized):
        unsigned = _unsigned(weight.codes, weight.bits)
        return {"weight_packed": pack_bits(unsigned, weight.bits), **_pack_grid(weight)}
    return _pack_sparse(weight)


def unpack(layout: WeightFormat, tensors: Mapping[str, Tensor]) -> CompressedWeight:
    """Rebuild a weight from its stored tensors; RecordError says what is missing or not fitting."""
    try:
        base = _unpack_base(layout, tensors)
        weight: CompressedWeight = base
        if layout.adapter is not None:
            B, A = _unpack_factor(layout, "B", tensors), _unpack_factor(layout, "A", tensors)
            weight = Adapted(base, B, A)
    except KeyError as error:
        msg = f"stored weight ({layout.label}): tensor {error} is missing; found {sorted(tensors)}."
        raise RecordError(msg) from error
    except (ConfigError, IndexError, RuntimeError) as error:
        # torch reports sizes that do not fit as RuntimeError or IndexError: the file is damaged.
        sizes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        msg = f"stored weight ({layout.label}): {sizes} cannot be unpacked ({error})."
        raise RecordError(msg) from error
    if format_of(weight) != layout:
        msg = f"stored weight: expected {layout}, but its tensors hold {format_of(weight)}."
        raise RecordError(msg)
    return weight


def stored_bytes(weight: CompressedWeight) -> int:
    """Bytes of all stored tensors of a weight."""
    return sum(tensor.nbytes for tensor in pack(weight).values())


def bits_per_weight(weight: CompressedWeight) -> float:
    """All stored bits over the number of weights of the dense matrix."""
    out, d_in = weight.shape
    return 8 * stored_bytes(weight) / (out * d_in)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last axis, the first in the lowest bits; rows end on a whole byte.

    codes: uint8 [..., n], each below 2^bits  ->  uint8 [..., packed_width(n, bits)]
    3-bit codes are a plane of their low 2 bits followed by a plane of their high bit: no code
    straddles two bytes, so a kernel unpacks them with the shifts of 2 and 1 bits.
    """
    if bits == 3:
        return torch.cat([pack_bits(codes & 3, 2), pack_bits(codes >> 2, 1)], dim=-1)
    if bits == 8:
        return codes.contiguous()
    per_byte = 8 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % per_byte))
    lanes = padded.reshape(*padded.shape[:-1], padded.shape[-1] // per_byte, per_byte)
    packed = torch.zeros(lanes.shape[:-1], dtype=torch.uint8, device=codes.device)
    for lane in range(per_byte):
        packed |= lanes[..., lane] << (lane * bits)
    return packed


def unpack_bits(packed: Tensor, bits: int, n: int) -> Tensor:
    """Inverse of `pack_bits`.  packed: uint8 [..., packed_width(n, bits)]  ->  uint8 [..., n]"""
    if bits == 3:
        low, high = packed[..., : packed_width(n, 2)], packed[..., packed_width(n, 2) :]
        return unpack_bits(low, 2, n) | (unpack_bits(high, 1, n) << 2)
    if bits == 8:
        return packed
    lanes = [(packed >> (lane * bits)) & (2**bits - 1) for lane in range(8 // bits)]
    return torch.stack(lanes, dim=-1).flatten(-2)[..., :n].contiguous()


def packed_width(n: int, bits: int) -> int:
    """Bytes that `pack_bits` needs for `n` codes."""
    if bits == 3:
        return packed_width(n, 2) + packed_width(n, 1)
    return -(-n * bits // 8)


def index_bits(pattern: NM) -> int:
    """Bits that say where in its group one kept entry stands: 2 for 2:4."""
    return (pattern.m - 1).bit_length()


def _unsigned(codes: Tensor, bits: int) -> Tensor:
    """Signed codes in offset binary; unsigned ones as they are."""
    if codes.dtype == torch.uint8:
        return codes
    return (codes.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8)


def _signed(codes: Tensor, grid: Grid) -> Tensor:
    if not grid.symmetric:
        return codes
    return (codes.to(torch.int16) - (1 << (grid.bits - 1))).to(torch.int8)


def _pack_grid(weight: Quantized) -> dict[str, Tensor]:
    tensors = {"weight_scale": weight.scale.contiguous()}
    if weight.zero_point is not None:
        tensors["weight_zero_point"] = pack_bits(weight.zero_point, weight.bits)
    if weight.group_index is not None:
        tensors["weight_g_idx"] = weight.group_index.contiguous()
    if weight.input_scale is not None:
        tensors["weight_input_scale"] = weight.input_scale.contiguous()
    return tensors


def _pack_sparse(weight: Sparse) -> dict[str, Tensor]:
    out, d_in = weight.shape
    mask, values = weight.mask, weight.values
    if isinstance(weight.pattern, NM):
        group = (out, d_in // weight.pattern.m, weight.pattern.m)
        places = torch.arange(group[2], dtype=torch.uint8, device=mask.device).expand(group)
        indices = places[mask.view(group)].view(out, -1)
        where = {"weight_indices": pack_bits(indices, index_bits(weight.pattern))}
        kept_shape: tuple[int, ...] = (out, indices.shape[1])
    else:
        where = {"weight_bitmask": pack_bits(mask.to(torch.uint8), 1)}
        kept_shape = (int(mask.sum()),)
    if isinstance(values, Dense):
        return {"weight_packed": values.values[mask].view(kept_shape), **where}
    kept = _unsigned(values.codes[mask], values.bits).view(kept_shape)
    return {"weight_packed": pack_bits(kept, values.bits), **where, **_pack_grid(values)}


def _pack_factor(name: str, factor: Factor) -> dict[str, Tensor]:
    if isinstance(factor, Tensor):
        return {f"{name}.weight": factor.contiguous()}
    stored = factor.values if isinstance(factor, Transposed) else factor
    return {f"{name}.{part}": tensor for part, tensor in pack(stored).items()}


def _unpack_factor(
    layout: WeightFormat, name: Literal["A", "B"], tensors: Mapping[str, Tensor]
) -> Factor:
    prefix = f"lora_{name}."
    found = layout.adapter.B if layout.adapter and name == "B" else None
    found = layout.adapter.A if layout.adapter and name == "A" else found
    if found is None:
        return tensors[f"{prefix}weight"]
    parts = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    factor = _unpack_base(layout.factor(name), parts)
    if isinstance(factor, Dense):
        return factor.values
    if found.transposed and isinstance(factor, Quantized):
        return Transposed(factor)
    return factor


def _unpack_base(layout: WeightFormat, tensors: Mapping[str, Tensor]) -> Dense | Quantized | Sparse:
    grid, pattern = layout.grid, layout.pattern
    if pattern is None:
        if grid is None:
            return Dense(tensors["weight"])
        codes = unpack_bits(tensors["weight_packed"], grid.bits, layout.shape[1])
        return _with_grid(_signed(codes, grid), grid, tensors)
    mask = _unpack_mask(layout.shape, pattern, tensors)
    packed = tensors["weight_packed"]
    if grid is None:
        values = torch.zeros(layout.shape, dtype=packed.dtype, device=packed.device)
        values[mask] = packed.flatten()
        return Sparse(Dense(values), mask, pattern)
    kept = mask.sum() // layout.shape[0] if isinstance(pattern, NM) else mask.sum()
    codes = torch.zeros(layout.shape, dtype=torch.uint8, device=packed.device)
    codes[mask] = unpack_bits(packed, grid.bits, int(kept)).flatten()
    # Masked-out codes are meaningless, but must lie on the grid until `Sparse` clears them.
    return Sparse(_with_grid(_signed(codes, grid), grid, tensors), mask, pattern)


def _with_grid(codes: Tensor, grid: Grid, tensors: Mapping[str, Tensor]) -> Quantized:
    scale, zero_point = tensors["weight_scale"], None
    if not grid.symmetric:
        zero_point = unpack_bits(tensors["weight_zero_point"], grid.bits, grid.scale_shape[1])
    index = tensors["weight_g_idx"] if grid.indexed else None
    input_scale = tensors["weight_input_scale"] if grid.input_scale else None
    return Quantized(codes, scale, zero_point, grid.bits, index, input_scale)


def _unpack_mask(shape: tuple[int, int], pattern: Pattern, tensors: Mapping[str, Tensor]) -> Tensor:
    out, d_in = shape
    if not isinstance(pattern, NM):
        return unpack_bits(tensors["weight_bitmask"], 1, d_in).bool()
    kept = d_in // pattern.m * pattern.n
    indices = unpack_bits(tensors["weight_indices"], index_bits(pattern), kept)
    mask = torch.zeros(out, d_in // pattern.m, pattern.m, dtype=torch.bool, device=indices.device)
    mask.scatter_(2, indices.view(out, -1, pattern.n).long(), True)
    return mask.view(out, d_in)
