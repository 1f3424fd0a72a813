"""How a compiled module stores one compressed weight: bytes, scales, metadata, adapters.

Every entry of a weight is found by its scale group, its position in the group and, if N:M sparse,
its plane: plane `j` holds the j-th kept entry of every N:M group, so that codes and metadata of one
plane are plain arrays of small integers, and unpacking them needs no division by N.

| tensor                      | shape, type                         | when                     |
|-----------------------------|-------------------------------------|--------------------------|
| values                      | [planes, out, groups, positions]    | floats                   |
| codes, codes_low/codes_high | [planes, out, groups, bytes], uint8 | codes; two if 3 bits     |
|                             | [out, in // g, K], uint8            | codes of vectors         |
| codebooks                   | [K, 256, g]                         | codes of vectors         |
| index, index_low/index_high | [planes, out, groups, bytes], uint8 | N:M: places in groups    |
| scale                       | [1, 1], [out, 1] or [out, groups]   | codes; uint8 if 8 bits   |
| levels                      | [1 or out, 2^bits]                  | a row's own table        |
| scale_codes, zero_codes     | [out, groups], uint8                | scales that are codes    |
| scale_low, scale_step,      | [ceil(out / rows), groups]          | the same                 |
| zero_low, zero_step         |                                     |                          |
| outer_scale                 | [1, 1], float32                     | an outer scale           |
| zero_point                  | shape of scale, uint8               | quantized, asymmetric    |
| input_scale                 | [in]                                | quantized, scaled inputs |
| B, A                        | [out, rank], [rank, in]             | adapter of plain floats  |
| B_codes, A_scale, ...       | as for a weight of the factor       | packed adapter           |

Symmetric codes are stored in offset binary.  Positions are padded to whole bytes of the narrowest
stream.  Entries that an unstructured mask removes are stored as zeros, and `bits` counts such a
weight at its full width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from trinity.lowering.rows.refusals import check_held
from trinity.lowering.weight_storage import CodePath, Shapes, WeightStorage
from trinity.methods.formats import (
    NM,
    Adapted,
    Codebook,
    Coded,
    CompressedWeight,
    Dense,
    Factor,
    Nested,
    Quantized,
    RowCoded,
    Sparse,
    Tiles,
    Transposed,
    Unstructured,
    VectorCoded,
    WeightFormat,
    WithOutliers,
)
from trinity.methods.formats.bits import pack_bits, unpack_bits
from trinity.methods.formats.nested_grid import OF, SECOND
from trinity.methods.formats.outliers import index_dtype
from trinity.methods.formats.packing import index_bits
from trinity.methods.formats.scales import EIGHT_BITS
from trinity.methods.formats.tiles import mask_of


@dataclass(frozen=True)
class Stream:
    """Small integers of one kind, `bits` wide, that contribute `value << shift` to their field."""

    name: str
    field: str
    bits: int
    shift: int

    @property
    def lanes(self) -> int:
        """Entries in one byte."""
        return 8 // self.bits


@dataclass(frozen=True)
class Layout(WeightStorage):
    """Where the entries of a weight of one format stand in rows."""

    path: ClassVar[CodePath] = "compiled"
    format: WeightFormat

    @cached_property
    def planes(self) -> int:
        """Kept entries of one N:M group; 1 without N:M."""
        return self.format.pattern.n if isinstance(self.format.pattern, NM) else 1

    @cached_property
    def span(self) -> int:
        """Inputs of one position: m of N:M; 1 without N:M."""
        return self.format.pattern.m if isinstance(self.format.pattern, NM) else 1

    @cached_property
    def groups(self) -> int:
        """Scale groups of one row."""
        return self.format.scale_groups

    @cached_property
    def positions(self) -> int:
        """Positions of one scale group, without padding."""
        return self.format.shape[1] // self.groups // self.span

    @cached_property
    def streams(self) -> tuple[Stream, ...]:
        """The packed integers: codes, then N:M metadata."""
        found: list[Stream] = []
        if bits := self.format.code_bits:
            found += _streams("codes", bits)
        if isinstance(self.format.pattern, NM):
            found += _streams("index", index_bits(self.format.pattern))
        return tuple(found)

    @cached_property
    def factors(self) -> tuple[int, ...]:
        """Sizes that split a run of positions so that each stream's lanes are trailing factors."""
        sizes, done = [], 1
        for lanes in sorted({stream.lanes for stream in self.streams} - {1}):
            sizes.append(lanes // done)
            done = lanes
        return tuple(reversed(sizes))

    @cached_property
    def units(self) -> int:
        """Runs of `prod(factors)` positions in one scale group; the last may be padding in part."""
        return -(-self.positions // prod(self.factors))

    @cached_property
    def padded(self) -> int:
        """Positions of one scale group, with padding."""
        return self.units * prod(self.factors)

    def shapes(self) -> Shapes:
        """See `WeightStorage`."""
        lead = (self.planes, self.format.shape[0], self.groups)
        found: Shapes = {}
        if self.format.dtype:
            found["values"] = ((*lead, self.padded), getattr(torch, self.format.dtype))
        for stream in self.streams:
            found[stream.name] = ((*lead, self.padded // stream.lanes), torch.uint8)
        if coded := self.format.coded:
            scale = getattr(torch, coded.scale_dtype)
            found["scale"] = (coded.scale_shape, torch.uint8 if scale in EIGHT_BITS else scale)
        if of := self.format.vectors:
            out, d_in = self.format.shape
            found["codes"] = ((out, d_in // of.group, of.books), torch.uint8)
            tables = (of.books, 2**of.bits, of.group)
            found["codebooks"] = (tables, getattr(torch, of.dtype))
            found["scale"] = ((out, 1), getattr(torch, of.scale_dtype))
        if own := self.format.row_codebook:
            found["levels"] = ((own.tables, 2**own.bits), getattr(torch, own.dtype))
        if nested := self.format.nested:
            out, of = self.format.shape[0], getattr(torch, nested.dtype)
            found |= {f"{name}_codes": ((out, self.groups), torch.uint8) for name in OF}
            second = (-(-out // nested.rows), self.groups)
            found |= {name: (second, of) for name in SECOND}
        if self.format.codebook and self.format.codebook.outer_scale:
            found["outer_scale"] = ((1, 1), torch.float32)
        if grid := self.format.grid:
            if not grid.symmetric:
                found["zero_point"] = (grid.scale_shape, torch.uint8)
            if grid.input_scale:
                found["input_scale"] = (self.format.shape[1:], getattr(torch, grid.input_scale))
        found |= outlier_shapes(self.format)
        for name, factor in self.factor_layouts.items():
            stored = factor.shapes()
            if is_plain(factor.format):
                found[name] = (factor.format.shape, stored["values"][1])
            else:
                found |= {f"{name}_{key}": value for key, value in stored.items()}
        return found

    @cached_property
    def factor_layouts(self) -> "dict[Literal['B', 'A'], Layout]":
        """Storage of the adapter's factors, each as a weight of its own; {} if none."""
        if self.format.adapter is None:
            return {}
        return {name: Layout(self.format.factor(name)) for name in ("B", "A")}

    @property
    def weight_tensors(self) -> tuple[str, ...]:
        """The stored tensors that replace the annotated weight: values or codes, and metadata."""
        if self.format.vectors:
            return ("codes",)
        values = ("values",) if self.format.dtype else ()
        return values + tuple(stream.name for stream in self.streams)

    @property
    def operand_tensors(self) -> tuple[str, ...]:
        """The stored tensors that are operands already at the annotated stage."""
        return tuple(name for name in self.shapes() if name not in self.weight_tensors)

    def pack(self, weight: CompressedWeight) -> dict[str, Tensor]:
        """See `WeightStorage`."""
        base = weight.base if isinstance(weight, Adapted) else weight
        tensors: dict[str, Tensor] = {}
        if isinstance(base, WithOutliers):
            tensors = {"outlier_columns": base.columns, "outlier_values": base.values}
            base = base.base
        mask = None
        if isinstance(base, Sparse):
            mask, base = base.mask, base.values
        if isinstance(base, Dense):
            tensors["values"] = _arrange(base.values, mask, self)
        elif isinstance(base, VectorCoded):
            tensors = {"codes": base.codes, "codebooks": base.codebooks, "scale": base.scale}
        else:
            # `layout_of` has refused other kinds.
            assert isinstance(base, Quantized | Coded | RowCoded | Nested)
            tensors |= _pack_field("codes", _arrange(raw_codes(base, mask), mask, self), self)
            tensors |= _scales(base)
        if self.span > 1 and mask is not None:
            places = torch.arange(self.span, dtype=torch.uint8, device=mask.device)
            indices = places.repeat(self.format.shape[1] // self.span).expand(mask.shape)
            tensors |= _pack_field("index", _arrange(indices, mask, self), self)
        if isinstance(weight, Adapted):
            tensors |= _pack_factor(self, "B", weight.B) | _pack_factor(self, "A", weight.A)
        return {name: tensors[name].contiguous() for name in self.shapes()}

    def unpack(self, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """The weight that `pack` stored.

        An unstructured mask comes back as the entries that are not zero, and so do the weight's
        values.
        """
        mask = _read_mask(self, tensors)
        if self.format.vectors:
            return VectorCoded(*(tensors[name] for name in ("codes", "codebooks", "scale")))
        base: Dense | Quantized | Coded | RowCoded | Nested | Sparse | WithOutliers
        if self.format.code_bits is None:
            base = Dense(_restore(tensors["values"][..., : self.positions], mask, self))
        else:
            base = _read_coded(self, mask, tensors)
        if isinstance(self.format.pattern, Unstructured):
            mask = base.dequantize() != 0
        elif isinstance(self.format.pattern, Tiles):
            mask = mask_of(base.dequantize(), self.format.pattern.size)
        if mask is not None and self.format.pattern is not None:
            base = Sparse(base, mask, self.format.pattern)
        if self.format.outliers is not None:
            base = WithOutliers(base, tensors["outlier_columns"], tensors["outlier_values"])
        if self.format.adapter is None:
            return base
        return Adapted(base, *(_read_factor(self, name, tensors) for name in ("B", "A")))


def layout_of(weight_format: WeightFormat) -> Layout:
    """The storage of a format; UnsupportedError if modules cannot hold it packed."""
    check_held(weight_format)
    return Layout(weight_format)


def outlier_shapes(weight_format: WeightFormat) -> Shapes:
    """What is stored of outliers, row by row; {} without."""
    found, (out, d_in) = weight_format.outliers, weight_format.shape
    if found is None:
        return {}
    shape = (out, found.room)
    return {
        "outlier_columns": (shape, index_dtype(d_in)),
        "outlier_values": (shape, getattr(torch, found.dtype)),
    }


def is_plain(weight_format: WeightFormat) -> bool:
    """Whether a factor of an adapter is stored as plain floats."""
    return weight_format.code_bits is None and weight_format.pattern is None


def _pack_factor(layout: Layout, name: Literal["B", "A"], factor: Factor) -> dict[str, Tensor]:
    if isinstance(factor, Tensor):
        return {name: factor}
    # `layout_of` has refused a factor that is kept as its transpose.
    assert not isinstance(factor, Transposed)
    packed = layout.factor_layouts[name].pack(factor)
    return {f"{name}_{key}": tensor for key, tensor in packed.items()}


def _read_factor(layout: Layout, name: Literal["B", "A"], tensors: Mapping[str, Tensor]) -> Factor:
    factor = layout.factor_layouts[name]
    if is_plain(factor.format):
        return tensors[name]
    found = factor.unpack({key: tensors[f"{name}_{key}"] for key in factor.shapes()})
    assert isinstance(found, (Quantized, Sparse))
    return found


def _scales(base: Quantized | Coded | RowCoded | Nested) -> dict[str, Tensor]:
    """What is stored beside codes."""
    if isinstance(base, Nested):
        return {name: getattr(base, name) for name in (*(f"{of}_codes" for of in OF), *SECOND)}
    if isinstance(base, RowCoded):
        return {"levels": base.levels}
    if isinstance(base, Coded):
        scale = base.scale.contiguous()
        found = {"scale": scale.view(torch.uint8) if scale.dtype in EIGHT_BITS else scale}
        beside = {"outer_scale": base.outer_scale}
    else:
        found = {"scale": base.scale}
        beside = {"zero_point": base.zero_point, "input_scale": base.input_scale}
    return found | {name: of for name, of in beside.items() if of is not None}


def _streams(field: str, bits: int) -> list[Stream]:
    if bits == 3:
        return [Stream(f"{field}_low", field, 2, 0), Stream(f"{field}_high", field, 1, 2)]
    return [Stream(field, field, bits, 0)]


def raw_codes(base: Quantized | Coded | RowCoded | Nested, mask: Tensor | None) -> Tensor:
    """Codes as stored, with the code for zero where the mask removes.  -> uint8 [out, in]"""
    if isinstance(base, RowCoded | Nested):
        assert mask is None  # `layout_of` has refused one
        return base.codes
    if isinstance(base, Coded):
        return base.codes if mask is None else base.cleared(mask).codes
    if base.zero_point is None:
        raw = (base.codes.to(torch.int16) + 2 ** (base.bits - 1)).to(torch.uint8)
        zero = torch.tensor(2 ** (base.bits - 1), dtype=torch.uint8, device=raw.device)
    else:
        raw = base.codes
        rows = base.zero_point.repeat_interleave(base.group_size, dim=1)
        zero = rows.expand(raw.shape)
    return raw if mask is None else torch.where(mask, raw, zero)


def _arrange(entries: Tensor, mask: Tensor | None, layout: Layout) -> Tensor:
    """Kept entries by plane, group and position.  [out, in] -> [planes, out, groups, padded]"""
    out = layout.format.shape[0]
    if layout.span > 1 and mask is not None:
        entries = entries[mask]
    kept = entries.reshape(out, layout.groups, layout.positions, layout.planes).permute(3, 0, 1, 2)
    return torch.nn.functional.pad(kept, (0, layout.padded - layout.positions))


def _restore(kept: Tensor, mask: Tensor | None, layout: Layout) -> Tensor:
    """Inverse of `_arrange`, zero where nothing is kept.  -> [out, in]"""
    flat = kept.permute(1, 2, 3, 0)
    if mask is None:
        return flat.reshape(layout.format.shape)
    dense = torch.zeros(layout.format.shape, dtype=kept.dtype, device=kept.device)
    dense[mask] = flat.flatten()
    return dense


def _pack_field(field: str, entries: Tensor, layout: Layout) -> dict[str, Tensor]:
    return {
        stream.name: pack_bits((entries >> stream.shift) & (2**stream.bits - 1), stream.bits)
        for stream in layout.streams
        if stream.field == field
    }


def _read_field(field: str, tensors: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """-> uint8 [planes, out, groups, positions]"""
    parts = [
        # Codes of 8 bits are padded where the metadata beside them is narrower.
        unpack_bits(tensors[stream.name], stream.bits, layout.positions)[..., : layout.positions]
        << stream.shift
        for stream in layout.streams
        if stream.field == field
    ]
    return torch.stack(parts).sum(0).to(torch.uint8)


def _read_mask(layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The N:M mask from its metadata.  -> bool [out, in]"""
    if layout.span == 1:
        return None
    out, d_in = layout.format.shape
    index = _read_field("index", tensors, layout).permute(1, 2, 3, 0).long()
    mask = torch.zeros(*index.shape[:-1], layout.span, dtype=torch.bool, device=index.device)
    return mask.scatter_(3, index, True).view(out, d_in)


def _read_coded(
    layout: Layout, mask: Tensor | None, tensors: Mapping[str, Tensor]
) -> Quantized | Coded | RowCoded | Nested:
    codes = _restore(_read_field("codes", tensors, layout), mask, layout)
    if layout.format.row_codebook:
        return RowCoded(codes, tensors["levels"])
    if found := layout.format.nested:
        return found.made(codes, tensors)
    grid = layout.format.coded
    assert grid is not None, f"format {layout.format.label} has no codes"
    if isinstance(grid, Codebook):
        scale = tensors["scale"].view(getattr(torch, grid.scale_dtype))
        coded = Coded(codes, scale, grid.table, tensors.get("outer_scale"))
        return coded if mask is None else coded.cleared(mask)
    if grid.symmetric:
        codes = (codes.to(torch.int16) - 2 ** (grid.bits - 1)).to(torch.int8)
    scales = tensors["scale"], tensors.get("zero_point")
    return Quantized(codes, *scales, grid.bits, input_scale=tensors.get("input_scale"))
