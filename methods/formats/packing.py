"""Storage of compressed weights: bits in bytes, lossless both ways.

Names follow compressed-tensors and PEFT.  Every tensor is what a file holds, so the bits per weight
counted here are the bits on disk, metadata, scales, zero points and adapters included.

| tensor             | shape, type                                     | when                     |
|--------------------|-------------------------------------------------|--------------------------|
| weight             | [out, in], float                                | dense                    |
| weight_packed      | [out, row bytes], uint8                         | codes, nothing masked    |
|                    | [out, row bytes of n/m * in codes], uint8       | codes N:M                |
|                    | [bytes of all kept codes], uint8                | codes unstructured       |
|                    | [out, row bytes of in/g * K codes], uint8       | codes of vectors         |
|                    | [out, n/m * in] or [kept], float                | sparse floats            |
| weight_indices     | [out, row bytes of n/m * in indices], uint8     | N:M; ceil(log2 m) bits ea|
| weight_bitmask     | [out, ceil(in / 8)], uint8                      | unstructured             |
| weight_tiles       | [tiles of out, ceil(tiles of in / 8)], uint8    | tiles                    |
|                    | (with all indices, codes or floats in one row)  |                          |
| weight_scale       | [1, 1], [out, 1] or [out, groups], float, or    | codes                    |
|                    | uint8: the bytes of a type of 8 bits            |                          |
| weight_outer_scale | [1, 1], float32                                 | an outer scale           |
| weight_levels      | [1 or out, 2^bits], float                       | a table for each row     |
| weight_codebooks   | [K, 2^bits, g], float                           | codes of vectors         |
| weight_scale_codes | [out, row bytes of groups codes], uint8; also   | scales that are codes    |
|                    | weight_zero_codes                               |                          |
| weight_scale_low   | [ceil(out / rows), groups], float; also _step,  | the same                 |
|                    | weight_zero_low, weight_zero_step               |                          |
| weight_signs       | [terms, out, row bytes], uint8: a bit each      | sums of signs            |
| weight_U, weight_V | [terms, out, rank], [terms, rank, in], float    | the same                 |
| weight_zero_point  | uint8 bytes of bit-packed points                | quantized, asymmetric    |
| weight_g_idx       | [in], int32                                     | groups by index          |
| weight_input_scale | [in], float                                     | quantized, scaled inputs |
| outlier_counts     | [out], int16 (int32 for more than 32768 inputs) | outliers                 |
| outlier_columns    | [outliers], the same type: row after row        | outliers                 |
| outlier_values     | [outliers], float                               | outliers                 |
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
from trinity.methods.formats import outliers, tiles
from trinity.methods.formats.adapter import Adapted, Factor, Transposed
from trinity.methods.formats.bits import pack_bits, unpack_bits
from trinity.methods.formats.dense import Dense
from trinity.methods.formats.kept import kept_of
from trinity.methods.formats.layout import CompressedWeight, WeightFormat, format_of
from trinity.methods.formats.outliers import WithOutliers
from trinity.methods.formats.sparse import NM, Pattern, Sparse
from trinity.methods.formats.tiles import Tiles
from trinity.methods.formats.values import Values


def pack(weight: CompressedWeight) -> dict[str, Tensor]:
    """The tensors that store a weight, contiguous as files need them; `unpack` is the inverse.

    Where nothing has to be packed, they are the weight's own tensors: read them only.
    """
    if isinstance(weight, Adapted):
        factors = _pack_factor("lora_A", weight.A) | _pack_factor("lora_B", weight.B)
        return pack(weight.base) | factors
    if isinstance(weight, WithOutliers):
        return pack(weight.base) | outliers.stored(weight)
    return _pack_sparse(weight) if isinstance(weight, Sparse) else weight.stored()


def unpack(layout: WeightFormat, tensors: Mapping[str, Tensor]) -> CompressedWeight:
    """Rebuild a weight from its stored tensors; RecordError says what is missing or not fitting."""
    try:
        found = _unpack_base(layout, tensors)
        base: Values | Sparse | WithOutliers = found
        if layout.outliers is not None:
            base = outliers.restored(found, layout.outliers, tensors)
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


def index_bits(pattern: NM) -> int:
    """Bits that say where in its group one kept entry stands: 2 for 2:4."""
    return (pattern.m - 1).bit_length()


def _pack_sparse(weight: Sparse) -> dict[str, Tensor]:
    out, d_in = weight.shape
    mask = weight.mask
    if isinstance(weight.pattern, NM):
        group = (out, d_in // weight.pattern.m, weight.pattern.m)
        places = torch.arange(group[2], dtype=torch.uint8, device=mask.device).expand(group)
        indices = kept_of(places, mask.view(group)).view(out, -1)
        where = {"weight_indices": pack_bits(indices, index_bits(weight.pattern))}
        kept_shape: tuple[int, ...] = (out, indices.shape[1])
    elif isinstance(weight.pattern, Tiles):
        where = tiles.pack(mask, weight.pattern)
        kept_shape = (int(mask.sum()),)
    else:
        where = {"weight_bitmask": pack_bits(mask.to(torch.uint8), 1)}
        kept_shape = (int(mask.sum()),)
    return weight.values.stored_kept(mask, kept_shape) | where


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
    if found.transposed and not isinstance(factor, Sparse):
        return Transposed(factor)
    return factor


def _unpack_base(layout: WeightFormat, tensors: Mapping[str, Tensor]) -> Values | Sparse:
    if layout.pattern is None:
        return layout.values.restored(layout.shape, tensors)
    mask = _unpack_mask(layout.shape, layout.pattern, tensors)
    count = int(mask.sum())
    out = layout.shape[0]
    kept = (out, count // out) if isinstance(layout.pattern, NM) else (count,)
    # What is masked out is meaningless, but must be valid until `Sparse` clears it.
    return Sparse(layout.values.restored_kept(mask, kept, tensors), mask, layout.pattern)


def _unpack_mask(shape: tuple[int, int], pattern: Pattern, tensors: Mapping[str, Tensor]) -> Tensor:
    out, d_in = shape
    if isinstance(pattern, Tiles):
        return tiles.unpack(shape, pattern, tensors["weight_tiles"], tensors["weight_indices"])
    if not isinstance(pattern, NM):
        return unpack_bits(tensors["weight_bitmask"], 1, d_in).bool()
    kept = d_in // pattern.m * pattern.n
    indices = unpack_bits(tensors["weight_indices"], index_bits(pattern), kept)
    mask = torch.zeros(out, d_in // pattern.m, pattern.m, dtype=torch.bool, device=indices.device)
    mask.scatter_(2, indices.view(out, -1, pattern.n).long(), True)
    return mask.view(out, d_in)
