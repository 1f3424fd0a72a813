"""Storage for our Vulkan kernels: a lane has one output, and 32 lanes read 512 bytes in a row.

A *panel* is 32 outputs, one to a lane.  Inputs run in *blocks* of 32; every scale group is padded
to whole blocks.  A *unit* is as many blocks of one output as fill whole 16-byte words: 128 inputs
of a masked weight and of 3-bit codes, 64 of 2-bit codes, else 32.  Its words hold, in order:

| format                | words                                                               |
|-----------------------|---------------------------------------------------------------------|
| codes of 2, 4, 8 bits | codes, the first in the lowest bits                                 |
| codes of 3 bits       | their lower two bits, then their upper one                          |
| floats                | floats                                                              |
| 2:4                   | two entries of every four inputs, then two bits for each one's place |
| other masks           | a bit an input that says whether it is kept                          |

All of a weight stands in one tensor of bytes, `strips`: words
[panels, units, words, 32 lanes, 16 bytes], scales [panels, groups, 32], zero points of the same
shape, a byte each, and under other masks the stream of what is kept (stream.py) and where it
begins.  Where that is more than a Vulkan buffer surely holds, panels go to as many tensors as it
takes, `strips_0` and so on; a stream is not cut.  Beside them stand `input_scale`, [in], where
inputs are scaled, and the tensors of an adapter's factors, `B_...` and `A_...`.

Masked codes are stored XOR the zero point, so that bits spread to their places are zero in between.
1:2 is stored as 2:4, which it is.  Where a mask saves nothing, as over codes of 2 and 3 bits,
entries that mean zero are stored.  One scale for the tensor is repeated for every output.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from trinity.lowering.kernels import stream
from trinity.lowering.kernels.kernel_storage import FACTORS, Codes, Numbers
from trinity.lowering.kernels.padded_panels import (
    AS_TWO_FOUR,
    BLOCK,
    PANEL,
    PaddedPanels,
    two_of_four,
)
from trinity.lowering.rows.row_storage import raw_codes
from trinity.lowering.weight_storage import Shapes
from trinity.methods.formats import Quantized, WeightFormat
from trinity.methods.formats.bits import pack_bits, unpack_bits

WORD = 16  # bytes
# What every Vulkan device reads of one buffer (maxStorageBufferRange).
LARGEST = 2**27
BITMAP = 1.25  # bits a weight of a bitmap, and of where its entries begin


def whole_words(size: int) -> int:
    """Bytes, rounded up to whole words of 16."""
    return -(-size // WORD) * WORD


def refusal(weight_format: WeightFormat) -> str | None:
    """Why strips cannot hold a format, or None."""
    if weight_format.codebook or weight_format.row_codebook:
        return "values of a table"
    if weight_format.outliers:
        return "outliers"
    for name in FACTORS if weight_format.adapter else ():
        strips = Strips(weight_format.factor(name))
        if name == "B" and strips.groups > 1 and strips.group % BLOCK:
            # Its inputs are the other factor's outputs, which stand without gaps.
            return f"adapter B: scale groups of {strips.group} inputs, not of whole {BLOCK}"
    strips = Strips(weight_format)
    if strips.streamed and strips.size(strips.panels) > LARGEST:
        return "more masked entries than a Vulkan buffer surely holds"
    return None


@dataclass(frozen=True)
class Section:
    """A run of bytes of one tensor: its first byte and the shape and type of what stands there."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end(self) -> int:
        """The byte behind it."""
        return self.start + prod(self.shape) * self.dtype.itemsize

    def of(self, stored: Tensor) -> Tensor:
        """What stands there."""
        return stored[self.start : self.end].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Strips(PaddedPanels):
    """Where the entries of a weight of one format stand in strips."""

    format: WeightFormat

    @property
    def bits_each(self) -> int:
        """Bits of a stored entry."""
        if self.format.grid:
            return self.format.grid.bits
        dtype: torch.dtype = getattr(torch, str(self.format.dtype))
        return 8 * dtype.itemsize

    @property
    def two_four(self) -> bool:
        """Whether two of four entries are stored."""
        return self.format.pattern in AS_TWO_FOUR and self.bits_each > 3

    @property
    def streamed(self) -> bool:
        """Whether kept entries stand one behind another, because they and a bitmap are smaller."""
        pattern, bits = self.format.pattern, self.bits_each
        if pattern is None or self.two_four or bits < 4:
            return False
        return BITMAP + bits * (1 - pattern.sparsity) < bits

    @property
    def unit_blocks(self) -> int:
        """Blocks of a unit."""
        if self.two_four or self.streamed or self.bits_each == 3:
            return 4
        return 2 if self.bits_each == 2 else 1

    @property
    def unit_words(self) -> int:
        """16-byte words of a unit."""
        if self.streamed:
            return 1
        entries = self.unit_blocks * BLOCK * self.bits_each // (8 * WORD)
        return entries // 2 + 1 if self.two_four else entries

    @property
    def vectors(self) -> int:
        """16-byte words of entries that a kernel takes for a block; blocks may share one."""
        if self.streamed:
            return 1
        entries = BLOCK * self.bits_each // (8 * WORD)
        return max(1, entries // 2 if self.two_four else entries)

    @property
    def units(self) -> int:
        """Units of a row; the last may be padding in part."""
        return -(-self.blocks // self.unit_blocks)

    @property
    def width(self) -> int:
        """See `PaddedPanels`: whole units."""
        return self.units * self.unit_blocks * BLOCK

    @cached_property
    def parts(self) -> tuple[range, ...]:
        """The panels of each stored tensor."""
        each = self.panels if self.streamed else max(1, LARGEST // self.size(1))
        return tuple(
            range(first, min(first + each, self.panels)) for first in range(0, self.panels, each)
        )

    def sections(self, panels: int) -> dict[str, Section]:
        """What stands in the tensor of so many panels."""
        grid = self.format.grid
        words = Section(0, (panels, self.units, self.unit_words, PANEL, WORD), torch.uint8)
        made = {"words": words}
        if grid:
            shape = (panels, self.groups, PANEL)
            made["scale"] = Section(words.end, shape, getattr(torch, grid.scale_dtype))
            if not grid.symmetric:
                made["zero_point"] = Section(made["scale"].end, shape, torch.uint8)
        if self.streamed:
            end = max(section.end for section in made.values())
            made["offsets"] = Section(end, (panels, self.units, PANEL), torch.int16)
            stored = -(-stream.room(self.format) * self.bits_each // 8)
            # Behind the last entry a kernel may read two words more.
            room = (1, whole_words(stored) + WORD)
            made["stream"] = Section(made["offsets"].end, room, torch.uint8)
            made["starts"] = Section(made["stream"].end, (panels, self.units), torch.int32)
        return made

    def size(self, panels: int) -> int:
        """Bytes of the tensor of so many panels, in whole words: a range ends at its tensor."""
        return whole_words(max(section.end for section in self.sections(panels).values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the stored tensors, in the order of `parts`."""
        if len(self.parts) == 1:
            return ("strips",)
        return tuple(f"strips_{number}" for number in range(len(self.parts)))

    def own_shapes(self) -> Shapes:
        """See `KernelStorage`."""
        parts = zip(self.names, self.parts, strict=True)
        return {name: ((self.size(len(panels)),), torch.uint8) for name, panels in parts}

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
        assert isinstance(base, Quantized)  # `refusal` has refused tables
        codes = self._padded(raw_codes(base, mask))
        grid_shape = (self.format.shape[0], self.groups)
        sections = {"scale": self._by_lane(base.scale.expand(grid_shape))}
        if base.zero_point is not None:
            sections["zero_point"] = self._by_lane(base.zero_point.expand(grid_shape))
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
        rows = self._from_lanes(self._whole(tensors, "scale"))
        return Codes(codes, mask, rows, None if zeros is None else self._from_lanes(zeros))

    @property
    def symmetric(self) -> bool:
        """Whether no zero points are stored."""
        return self.format.grid is None or self.format.grid.symmetric

    def _zeros(self, stored: Tensor | None) -> Tensor:
        """The zero point of every padded entry.  stored: [panels, groups, 32]"""
        shape = (self.panels * PANEL, self.units * self.unit_blocks * BLOCK)
        if stored is None:
            return torch.full(shape, 1 << (self.bits_each - 1), dtype=torch.uint8)
        rows = stored.permute(0, 2, 1).reshape(shape[0], self.groups)
        wide = rows.repeat_interleave(self.span * BLOCK, dim=1)
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
        if self.format.grid:
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
        """[out, groups] -> [panels, groups, 32], outputs padded with zeros."""
        full = torch.zeros(self.panels * PANEL, self.groups, dtype=values.dtype)
        full[: len(values)] = values
        return full.view(self.panels, PANEL, self.groups).permute(0, 2, 1)

    def _from_lanes(self, stored: Tensor) -> Tensor:
        """Inverse of `_by_lane`."""
        rows = stored.permute(0, 2, 1).reshape(self.panels * PANEL, self.groups)
        return rows[: self.format.shape[0]].contiguous()

    def _in_parts(self, sections: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The stored tensors of sections over all panels."""
        made = {}
        for name, panels in zip(self.names, self.parts, strict=True):
            whole = torch.zeros(self.size(len(panels)), dtype=torch.uint8)
            for key, section in self.sections(len(panels)).items():
                given = sections[key]
                section.of(whole).copy_(
                    given if key == "stream" else given[panels.start : panels.stop]
                )
            made[name] = whole
        return made

    def _whole(self, tensors: Mapping[str, Tensor], key: str) -> Tensor:
        """A section over all panels."""
        parts = zip(self.names, self.parts, strict=True)
        found = [self.sections(len(panels))[key].of(tensors[name]) for name, panels in parts]
        return torch.cat(found)
