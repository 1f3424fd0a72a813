"""A weight in strips: packed, and taken apart.  strip_geometry.py says where what stands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trinity.lowering.kernels import stream
from trinity.lowering.kernels.kernel_storage import FACTORS, Codes, Numbers
from trinity.lowering.kernels.padded_panels import PANEL, two_of_four
from trinity.lowering.kernels.strip_geometry import HALF, LARGEST, WORD, StripGeometry
from trinity.lowering.rows.row_storage import raw_codes
from trinity.methods.formats import Coded, Nested, RowCoded, WeightFormat, WithOutliers
from trinity.methods.formats.bits import pack_bits, unpack_bits
from trinity.methods.formats.level_tables import levels, zero_code
from trinity.methods.formats.scales import EIGHT_BITS


def refusal(weight_format: WeightFormat) -> str | None:
    """Why strips cannot hold a format, or None."""
    if weight_format.vectors:
        return "vectors of tables"
    grid = weight_format.grid
    if weight_format.nested:
        return "no kernel reads scales that are codes"
    if weight_format.inputs and weight_format.inputs.turned:
        return "inputs that are turned"
    if weight_format.outliers and grid and grid.input_scale:
        return "outliers, which read inputs as they are, beside scaled inputs"
    for name in FACTORS if weight_format.adapter else ():
        strips = Strips(weight_format.factor(name))
        if name == "B" and strips.groups > 1 and strips.group != strips.padded_group:
            # Its inputs are the other factor's outputs, which stand without gaps.
            return f"adapter B: scale groups of {strips.group} inputs, not of whole {HALF}"
        if len(strips.parts) > 1:
            return f"adapter {name}: larger than a Vulkan buffer surely holds"
    strips = Strips(weight_format)
    if strips.streamed and strips.size(strips.panels) > LARGEST:
        return "more masked entries than a Vulkan buffer surely holds"
    return None


def table_of(weight_format: WeightFormat) -> Tensor:
    """Levels of a table's codes as they are stored: of the zero code first.  -> float32 [2^bits]"""
    assert weight_format.codebook
    table = levels(weight_format.codebook.table)
    return table[torch.arange(len(table)) ^ zero_code(weight_format.codebook.table)]


@dataclass(frozen=True)
class Strips(StripGeometry):
    """The stored tensors of a weight in strips."""

    def pack_values(self, values: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See `KernelStorage`."""
        entries = self._padded(values if mask is None else values * mask)
        if mask is not None and self.streamed:
            return self._in_parts(self._stream(entries, self._padded(mask)))
        kept = None
        if mask is not None and self.two_four:
            kept = two_of_four(self._padded(mask))
            entries = entries[kept].view(len(entries), -1)
        return self._in_parts({"words": self._words(entries.contiguous().view(torch.uint8), kept)})

    def unpack_values(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """See `KernelStorage`."""
        dtype = getattr(torch, str(self.format.dtype))
        if self.streamed:
            return self._from_stream(tensors, lambda stored: stored.view(dtype))
        entries, kept = self._from_words(self._whole(tensors, "words"))
        return self._restored(entries.contiguous().view(dtype), kept)

    def pack_codes(self, base: Numbers, mask: Tensor | None) -> dict[str, Tensor]:
        """See `KernelStorage`."""
        codes = self._padded(raw_codes(base, mask) ^ self._code_of_zero)
        sections = self._beside(base)
        kept = None
        if mask is not None and (self.two_four or self.streamed):
            codes = codes ^ self._zeros(sections.get("zero_point"))
        if mask is not None and self.streamed:
            return self._in_parts(sections | self._stream(codes, self._padded(mask)))
        if mask is not None and self.two_four:
            kept = two_of_four(self._padded(mask))
            codes = codes[kept].view(len(codes), -1)
        sections["words"] = self._words(self._in_bytes(codes), kept)
        return self._in_parts(sections)

    def unpack_codes(self, tensors: Mapping[str, Tensor]) -> Codes:
        """See `KernelStorage`."""
        zeros = None if self.symmetric else self._whole(tensors, "zero_point")
        mask: Tensor | None
        if self.streamed:
            count, bits = stream.room(self.format), self.bits_each
            codes, mask = self._from_stream(
                tensors, lambda stored: unpack_bits(stored, bits, count)
            )
        else:
            entries, kept = self._from_words(self._whole(tensors, "words"))
            codes, mask = self._restored(self._from_bytes(entries), kept)
        if mask is not None:
            codes = codes ^ self._cut(self._zeros(zeros))
        codes ^= self._code_of_zero
        if self.format.row_codebook:
            return Codes(codes, mask, levels=self._from_lanes(self._whole(tensors, "levels")))
        scale = self._from_lanes(self._whole(tensors, "scale"))[:, : self.groups]
        zero_point = None if zeros is None else self._from_lanes(zeros)[:, : self.groups]
        return Codes(codes, mask, scale, zero_point, self._outer_scale(tensors))

    def _beside(self, base: Numbers) -> dict[str, Tensor]:
        """What is stored beside codes, by section."""
        out = self.format.shape[0]
        if isinstance(base, RowCoded):
            return {"levels": self._by_lane(base.levels.expand(out, -1))}
        assert not isinstance(base, Nested)  # `refusal` has refused it
        scale = base.scale.view(torch.uint8) if base.scale.dtype in EIGHT_BITS else base.scale
        found = {"scale": self._by_lane(self._with_last(scale.expand(out, -1)))}
        if isinstance(base, Coded):
            outer = 1 if base.outer_scale is None else base.outer_scale[0]
            found["levels"] = table_of(self.format) * outer
        elif base.zero_point is not None:
            found["zero_point"] = self._by_lane(self._with_last(base.zero_point.expand(out, -1)))
        return found

    def _with_last(self, values: Tensor) -> Tensor:
        """[out, groups] -> [out, scales]"""
        return torch.nn.functional.pad(values, (0, self.scales - self.groups))

    def _outer_scale(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """What the stored levels are multiplied with: the level 1, which every table has, is it."""
        codebook = self.format.codebook
        if codebook is None or not codebook.outer_scale:
            return None
        return self._whole(tensors, "levels")[table_of(self.format) == 1].view(1, 1)

    def add_outliers(self, weight: WithOutliers, found: dict[str, Tensor]) -> None:
        """See `KernelStorage`."""
        group, padded = self.group, self.padded_group
        columns = weight.columns.long()
        columns = columns // group * padded + columns % group
        dtype = self.sections(0)["outlier_columns"].dtype
        sections = {"outlier_columns": columns.to(dtype), "outlier_values": weight.values}
        self._store(found, {name: self._by_lane(of) for name, of in sections.items()})

    def unpack_outliers(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See `KernelStorage`."""
        columns, values = (
            self._from_lanes(self._whole(tensors, f"outlier_{name}"))
            for name in ("columns", "values")
        )
        group, padded = self.group, self.padded_group
        return columns // padded * group + columns % padded, values

    @property
    def _code_of_zero(self) -> int:
        """What codes of a table are stored XOR with."""
        return zero_code(self.format.codebook.table) if self.format.codebook else 0

    @property
    def symmetric(self) -> bool:
        """Whether no zero points are stored."""
        return self.format.grid is None or self.format.grid.symmetric

    def _zeros(self, stored: Tensor | None) -> Tensor:
        """What stands for zero at every padded entry.  stored: [panels, scales, 32]"""
        shape = (self.panels * PANEL, self.width)
        if stored is None:
            zero = 1 << (self.bits_each - 1) if self.format.grid else 0
            return torch.full(shape, zero, dtype=torch.uint8)
        rows = stored.permute(0, 2, 1).reshape(shape[0], self.scales)
        wide = rows.repeat_interleave(self.padded_group, dim=1)[:, : self.width]
        return torch.nn.functional.pad(wide, (0, shape[1] - wide.shape[1]))

    def _restored(self, stored: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Entries at their inputs, [out, in], and the mask if it is stored."""
        if kept is None:
            return self._cut(stored), None
        full = torch.zeros(kept.shape, dtype=stored.dtype)
        full[kept] = stored.flatten()
        return self._cut(full), self._cut(kept)

    def _stream(self, entries: Tensor, kept: Tensor) -> dict[str, Tensor]:
        """The bitmap, the stream and where it begins.  entries, kept: [rows, units' inputs]"""
        entries, kept = self._by_unit(entries), self._by_unit(kept)
        stored, places = stream.in_order(entries, kept, self.format), stream.places_of(kept)
        if self.format.code_bits:
            stored = pack_bits(stored, self.bits_each)
        stored = stored.contiguous().view(torch.uint8)
        (_, size), words = self.sections(self.panels)["stream"].shape, pack_bits(kept.byte(), 1)
        return {
            "words": words[:, :, None],
            "stream": torch.nn.functional.pad(stored, (0, size - len(stored)))[None],
            "starts": places.starts,
            "offsets": places.offsets,
        }

    def _from_stream(
        self, tensors: Mapping[str, Tensor], entries_of: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Entries at their inputs, [out, in], and the mask.  entries_of: of the stream's bytes"""
        words = self._whole(tensors, "words")[:, :, 0]
        kept = unpack_bits(words.contiguous(), 1, 8 * WORD).bool()
        full = stream.at_inputs(entries_of(self._whole(tensors, "stream")[0]), kept)
        return self._cut(self._by_row(full)), self._cut(self._by_row(kept))

    def _by_unit(self, rows: Tensor) -> Tensor:
        """[rows, units' inputs] -> [panels, units, 32, inputs]"""
        return rows.view(self.panels, PANEL, self.units, -1).permute(0, 2, 1, 3)

    def _by_row(self, units: Tensor) -> Tensor:
        """Inverse of `_by_unit`."""
        return units.permute(0, 2, 1, 3).reshape(self.panels * PANEL, -1)

    def _in_bytes(self, codes: Tensor) -> Tensor:
        """Codes of every unit, packed.  [rows, stored] -> [rows, bytes]"""
        return pack_bits(codes.view(len(codes), self.units, -1), self.bits_each).flatten(1)

    def _from_bytes(self, stored: Tensor) -> Tensor:
        """Inverse of `_in_bytes`."""
        units = stored.reshape(len(stored), self.units, -1)
        count = units.shape[2] * 8 // self.bits_each
        return unpack_bits(units, self.bits_each, count).flatten(1)

    def _words(self, entries: Tensor, kept: Tensor | None) -> Tensor:
        """Bytes of the entries of every row, places behind each unit's.

        -> [panels, units, words, 32, 16]
        """
        rows = entries.view(len(entries), self.units, -1)
        if kept is not None:
            every = torch.arange(4, dtype=torch.uint8).repeat(kept.shape[1] // 4)
            places = every.expand(kept.shape)[kept].view(len(entries), self.units, -1)
            rows = torch.cat([rows, pack_bits(places, 2)], dim=2)
        split = rows.view(self.panels, PANEL, self.units, self.unit_words, WORD)
        return split.permute(0, 2, 3, 1, 4)

    def _from_words(self, words: Tensor) -> tuple[Tensor, Tensor | None]:
        """Inverse of `_words`."""
        rows = words.permute(0, 3, 1, 2, 4).reshape(self.panels * PANEL, self.units, -1)
        if not self.two_four:
            return rows.flatten(1), None
        places_start = (self.unit_words - 1) * WORD
        entries, stored = rows[:, :, :places_start], rows[:, :, places_start:]
        places = unpack_bits(stored.contiguous(), 2, 64).reshape(len(rows), -1, 2).long()
        kept = torch.zeros(*places.shape[:2], 4, dtype=torch.bool).scatter_(2, places, True)
        return entries.flatten(1), kept.flatten(1)

    def _by_lane(self, values: Tensor) -> Tensor:
        """[out, some] -> [panels, some, 32], outputs padded with zeros."""
        full = torch.zeros(self.panels * PANEL, values.shape[1], dtype=values.dtype)
        full[: len(values)] = values
        return full.view(self.panels, PANEL, -1).permute(0, 2, 1)

    def _from_lanes(self, stored: Tensor) -> Tensor:
        """Inverse of `_by_lane`."""
        rows = stored.permute(0, 2, 1).reshape(self.panels * PANEL, stored.shape[1])
        return rows[: self.format.shape[0]].contiguous()

    def _in_parts(self, sections: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored tensors of sections over all panels."""
        parts = zip(self.names, self.parts, strict=True)
        made = {name: torch.zeros(self.size(len(of)), dtype=torch.uint8) for name, of in parts}
        self._store(made, sections)
        return made

    def _store(self, found: Mapping[str, Tensor], sections: Mapping[str, Tensor]) -> None:
        """Write sections over all panels into the stored tensors."""
        for name, panels in zip(self.names, self.parts, strict=True):
            places = self.sections(len(panels))
            for key, given in sections.items():
                here = given if key in self.undivided else given[panels.start : panels.stop]
                places[key].of(found[name]).copy_(here)

    def _whole(self, tensors: Mapping[str, Tensor], key: str) -> Tensor:
        """A section over all panels."""
        parts = zip(self.names, self.parts, strict=True)
        found = [self.sections(len(panels))[key].of(tensors[name]) for name, panels in parts]
        return found[0] if key in self.undivided else torch.cat(found)
