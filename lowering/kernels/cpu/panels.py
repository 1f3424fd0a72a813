"""Storage for our CPU kernels: panels of outputs, so that one load feeds the lanes of one vector.

A *panel* is `rows` consecutive outputs: `vectors` vectors of 16 lanes, a lane one output.  Inputs
run in *blocks*: a scale group, cut where it is longer than 256, padded to whole chunks.  Four
consecutive inputs of 16 outputs are a *word vector* of 64 bytes, one byte a code, the operand of
an integer dot product.

| tensor               | shape, type                                  | when                      |
|----------------------|----------------------------------------------|---------------------------|
| panel_values         | [panels, in or in / 2, rows], float          | floats, no stream         |
| panel_codes[_high]   | [panels, units, vectors, bytes], uint8       | codes, no stream          |
| panel_stream         | [1, size], float or uint8                    | a mask that pays          |
| panel_starts         | [panels, stretches, vectors], int32          | panel_stream              |
| panel_bitmap         | [panels, word vectors, vectors], int64       | panel_stream, N:2 and N:4 |
| panel_positions      | [panels, word vectors / 4, vectors, 32], uint8 | `picked`, no bitmap     |
| panel_picks          | [panels, word vectors, 2 vectors], int32     | `permuted`                |
| panel_scale          | [panels, groups, rows]; uint8 if of 8 bits   | codes                     |
| panel_outer_scale    | [1, 1], float32                              | an outer scale            |
| panel_levels         | [panels, 2^bits, rows], float                | a row's own table         |
| panel_scale_codes    | [panels, groups, rows], uint8                | scales that are codes     |
| panel_grids          | [panels, groups, vectors, 4], float          | the same                  |
| panel_zero_point     | shape of panel_scale, uint8                  | asymmetric                |
| panel_outlier_columns | [panels, room, rows], int16 or int32        | outliers                  |
| panel_outlier_values | [panels, room, rows], float                  | outliers                  |
| B_..., A_...         | those of the adapter's factors               | adapter                   |

They stand one behind another in the bytes of one tensor, `panels` or `picked_panels`: a kernel of
many weights could not be given as many.  Beside it is only `input_scale`, [in], if inputs have it.

A unit is as many word vectors as codes share a byte (two for 4 bits): lane `l` of byte `i` holds
byte `i` of word vector `l`.  3 bits are a plane of 2 and one of 1, whose units are two blocks long
where those have 16 inputs.  One scale for the tensor is repeated.

Of scales that are codes, the code of a scale is the lower half of a byte and that of the zero point
the upper one.  What 16 outputs share, low and step of both, are four numbers.

Of masked weights a word vector has 64 bits that say which entries it keeps:

- Codes where M is 2 or 4 keep `64 n / m` bytes of every word vector, in order.  Where half is kept
  some processors read each code's place in its word, two bits, and no bitmap (`picking.py`).
- Other masks over codes of 4 or 8 bits, and all over floats, keep as many as they keep, one behind
  another: a *stream*, two codes of 4 bits in a byte, a whole number of bytes a word vector.
  Floats run in it input by input, as they are multiplied, codes output by output.  `panel_starts`
  says where a *stretch* begins, the word vectors of a block (of floats, of the whole row).  The
  stream has the size that the pattern's sparsity asks for, so that it depends on the format alone.
- Floats of which every word keeps half are stored for some processors with each one's place, two
  bits, and no bitmap (`permuting.py`).
- Where a bitmap would save nothing (3:4 of 2 bits), all are stored, those removed as zeros; so are
  entries of up to 16 bits for processors that spread a stream more slowly than they read them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from trinity.lowering.kernels.cpu.bit_planes import (
    Plane,
    bitmap,
    from_bitmap,
    from_positions,
    kept_half,
    pack_lanes,
    packed_nibbles,
    positions,
    turned,
    unpack_lanes,
    unpacked_nibbles,
    whole_of_half,
)
from trinity.lowering.kernels.cpu.kept_entries import OVERREAD, KeptEntries
from trinity.lowering.kernels.cpu.kernel_text import LANES
from trinity.lowering.kernels.cpu.panel_geometry import (
    HALF,
    WORD,
    PanelGeometry,
)
from trinity.lowering.kernels.kernel_storage import Codes, Numbers
from trinity.lowering.rows.row_storage import outlier_shapes, raw_codes
from trinity.lowering.weight_storage import Shapes
from trinity.methods.formats import (
    Codebook,
    Coded,
    CompressedWeight,
    Grid,
    Nested,
    RowCoded,
    WithOutliers,
)
from trinity.methods.formats.nested_grid import SECOND
from trinity.methods.formats.scales import EIGHT_BITS

NIBBLE = 4  # bits
ALIGNMENT = 64  # bytes, of a vector and of a cache line
INPUT_SCALE = "input_scale"  # read by code that knows nothing of panels
POSITIONS = Plane("panel_positions", 2, 0)  # of kept codes in their words


def aligned(size: int) -> int:
    """Bytes, rounded up so that what follows is aligned."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Panels(PanelGeometry):
    """The stored tensors of a weight in panels."""

    @property
    def _stream(self) -> KeptEntries:
        per = self.entries_per_element
        return KeptEntries(self.format, self.stretches, per, self.stream_room)

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where each part starts in the bytes of `panels`, and where they end."""
        found, end = {}, 0
        for name, (shape, dtype) in self.part_shapes().items():
            if name != INPUT_SCALE:
                found[name] = end
                end += aligned(prod(shape) * dtype.itemsize)
        return {**found, "": end}

    def shapes(self) -> Shapes:
        """See `KernelStorage`."""
        parts = self.part_shapes()
        found: Shapes = {self.tensor: ((self.offsets[""],), torch.uint8)}
        return found | {name: parts[name] for name in parts if name == INPUT_SCALE}

    def pack(self, weight: CompressedWeight) -> dict[str, Tensor]:
        """See `KernelStorage`."""
        parts = self.pack_parts(weight)
        together = torch.zeros(self.offsets[""], dtype=torch.uint8)
        for name, start in self.offsets.items():
            if name:
                bytes_ = parts[name].flatten().view(torch.uint8)
                together[start : start + len(bytes_)] = bytes_
        return {self.tensor: together} | {n: parts[n] for n in parts if n == INPUT_SCALE}

    def unpack(self, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """See `KernelStorage`."""
        parts = {name: tensors[name] for name in tensors if name == INPUT_SCALE}
        for name, (shape, dtype) in self.part_shapes().items():
            if name != INPUT_SCALE:
                start = self.offsets[name]
                size = prod(shape) * dtype.itemsize
                parts[name] = tensors[self.tensor][start : start + size].view(dtype).view(shape)
        return self.unpack_parts(parts)

    def own_shapes(self) -> Shapes:
        """See `KernelStorage`."""
        found: Shapes = {}
        dtype = getattr(torch, self.format.dtype or "uint8")
        if self.streamed:
            found["panel_stream"] = ((1, self.stream_room + OVERREAD), dtype)
            found["panel_starts"] = ((self.panels, self.stretches, self.vectors), torch.int32)
        elif not self.codes:
            inputs = self.format.shape[1]
            kept = inputs // 2 if self.permuted else inputs
            found["panel_values"] = ((self.panels, kept, self.rows), dtype)
            if self.permuted:
                shape = (self.panels, inputs // WORD, 2 * self.vectors)
                found["panel_picks"] = (shape, torch.int32)
        else:
            for plane in self.planes:
                units = self.units(plane)
                found[plane.name] = ((self.panels, units, self.vectors, self.kept), dtype)
        if self.picked:
            units = self.units(POSITIONS)
            found[POSITIONS.name] = ((self.panels, units, self.vectors, HALF), torch.uint8)
        elif self.sparse or self.streamed:
            found["panel_bitmap"] = ((self.panels, self.words, self.vectors), torch.int64)
        if own := self.format.row_codebook:
            shape = (self.panels, 2**own.bits, self.rows)
            found["panel_levels"] = (shape, getattr(torch, own.dtype))
        if nested := self.format.nested:
            found["panel_scale_codes"] = ((self.panels, self.groups, self.rows), torch.uint8)
            grids = (self.panels, self.groups, self.vectors, len(SECOND))
            found["panel_grids"] = (grids, getattr(torch, nested.dtype))
        if coded := self.format.coded:
            shape = (self.panels, self.groups, self.rows)
            scale = getattr(torch, coded.scale_dtype)
            found["panel_scale"] = (shape, torch.uint8 if scale in EIGHT_BITS else scale)
            if isinstance(coded, Grid) and not coded.symmetric:
                found["panel_zero_point"] = (shape, torch.uint8)
            if isinstance(coded, Codebook) and coded.outer_scale:
                found["panel_outer_scale"] = ((1, 1), torch.float32)
        for name, ((_, room), dtype) in outlier_shapes(self.format).items():
            found[f"panel_{name}"] = ((self.panels, room, self.rows), dtype)
        return found

    def add_outliers(self, weight: WithOutliers, found: dict[str, Tensor]) -> None:
        """See `KernelStorage`."""
        parts = {"columns": weight.columns, "values": weight.values}
        found |= {f"panel_outlier_{name}": self._by_panel(of) for name, of in parts.items()}

    def unpack_outliers(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See `KernelStorage`."""
        columns, values = (
            self._from_panels(tensors[f"panel_outlier_{name}"]) for name in ("columns", "values")
        )
        return columns, values

    def pack_values(self, values: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See `KernelStorage`."""
        if mask is not None and self.streamed:
            entries, kept = (turned(self._words(of), LANES, WORD) for of in (values, mask))
            return self._stream.pack(entries, kept)
        if mask is not None and self.permuted:
            halves, places = kept_half(values, mask)
            picks = packed_nibbles(self._by_panel(places))
            return {"panel_values": self._by_panel(halves), "panel_picks": picks}
        return {"panel_values": self._by_panel(values)}

    def unpack_values(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """See `KernelStorage`."""
        if self.streamed:
            entries, kept = self._stream.unpack(tensors)
            values, mask = (self._matrix(turned(of, WORD, LANES)) for of in (entries, kept))
            return values, mask
        stored = self._from_panels(tensors["panel_values"])
        if self.permuted:
            return whole_of_half(
                stored, self._from_panels(unpacked_nibbles(tensors["panel_picks"]))
            )
        return stored, None

    def pack_codes(self, base: Numbers, mask: Tensor | None) -> dict[str, Tensor]:
        """See `KernelStorage`."""
        words = self._words(raw_codes(base, mask))
        found = {}
        if mask is not None and self.sparse:
            kept = self._words(mask, padding=self._padding_mask())
            if self.picked:
                found[POSITIONS.name] = pack_lanes(positions(kept), POSITIONS)
            else:
                found["panel_bitmap"] = bitmap(kept)
            words = words[kept].view(*words.shape[:-1], self.kept)
        if mask is not None and self.streamed:
            found = self._stream.pack(words, self._words(mask))
        else:
            for plane in self.planes:
                found[plane.name] = pack_lanes((words >> plane.shift) & (2**plane.bits - 1), plane)
        if isinstance(base, RowCoded):
            found["panel_levels"] = self._by_panel(base.levels.expand(self.format.shape[0], -1))
            return found
        if isinstance(base, Nested):
            both = base.scale_codes | base.zero_codes << NIBBLE
            grids = torch.stack([self._by_vector(getattr(base, name)) for name in SECOND], dim=-1)
            return found | {"panel_scale_codes": self._by_panel(both), "panel_grids": grids}
        scale = base.scale.view(torch.uint8) if base.scale.dtype in EIGHT_BITS else base.scale
        found["panel_scale"] = self._by_panel(scale.expand(self.format.shape[0], self.groups))
        if isinstance(base, Coded):
            if base.outer_scale is not None:
                found["panel_outer_scale"] = base.outer_scale
        elif base.zero_point is not None:
            zeros = base.zero_point.expand(self.format.shape[0], self.groups)
            found["panel_zero_point"] = self._by_panel(zeros)
        return found

    def unpack_codes(self, tensors: Mapping[str, Tensor]) -> Codes:
        """See `KernelStorage`."""
        mask = None
        if self.streamed:
            words, kept = self._stream.unpack(tensors)
            mask = self._matrix(kept)
        else:
            shape = (self.panels, self.words, self.vectors, self.kept)
            words = torch.zeros(shape, dtype=torch.uint8)
            for plane in self.planes:
                words |= unpack_lanes(tensors[plane.name], plane, self.words) << plane.shift
        if self.sparse:
            if self.picked:
                kept = from_positions(unpack_lanes(tensors[POSITIONS.name], POSITIONS, self.words))
            else:
                kept = from_bitmap(tensors["panel_bitmap"])
            full = torch.zeros(kept.shape, dtype=torch.uint8)
            full[kept] = words.flatten()
            words, mask = full, self._matrix(kept)
        if self.format.row_codebook:
            levels = self._from_panels(tensors["panel_levels"])
            return Codes(self._matrix(words), mask, levels=levels)
        if self.format.nested:
            both = self._from_panels(tensors["panel_scale_codes"])
            parts = [self._from_vectors(of) for of in tensors["panel_grids"].unbind(-1)]
            beside = dict(zip(SECOND, parts, strict=True))
            beside |= {"scale_codes": both & 2**NIBBLE - 1, "zero_codes": both >> NIBBLE}
            return Codes(self._matrix(words), mask, nested=beside)
        zeros = tensors.get("panel_zero_point")
        return Codes(
            self._matrix(words),
            mask,
            self._from_panels(tensors["panel_scale"]),
            None if zeros is None else self._from_panels(zeros),
            tensors.get("panel_outer_scale"),
        )

    def _words(self, entries: Tensor, padding: Tensor | None = None) -> Tensor:
        """[out, in] -> [panels, words, vectors, 64]; outputs and inputs padded with zeros."""
        out, parts = self.format.shape[0], (self.groups, self.group_blocks)
        span = self.group_blocks * self.block
        if padding is None:
            padding = torch.zeros(WORD, dtype=entries.dtype)
        sized = padding.to(entries.dtype).repeat(self.blocks * self.block // WORD)
        full = sized.repeat(self.panels * self.rows, 1).view(-1, *parts, self.block)
        starts = [self._block_start(i) for i in range(self.group_blocks + 1)]
        grouped = entries.reshape(out, self.groups, self.group)
        for i in range(self.group_blocks):
            size = starts[i + 1] - starts[i]
            full[:out, :, i, :size] = grouped[:, :, starts[i] : starts[i + 1]]
        shape = (self.panels, self.vectors, LANES, self.groups * span // WORD, WORD)
        return full.reshape(shape).permute(0, 3, 1, 2, 4).flatten(3)

    def _matrix(self, words: Tensor) -> Tensor:
        """Inverse of `_words`."""
        split = words.view(self.panels, self.words, self.vectors, LANES, WORD)
        full = split.permute(0, 2, 3, 1, 4).reshape(-1, self.groups, self.group_blocks, self.block)
        out = full[: self.format.shape[0]]
        starts = [self._block_start(i) for i in range(self.group_blocks + 1)]
        parts = [out[:, :, i, : starts[i + 1] - starts[i]] for i in range(self.group_blocks)]
        return torch.cat(parts, dim=2).reshape(self.format.shape).contiguous()

    def _block_start(self, index: int) -> int:
        """First input, within its group, of a block; blocks are full but for the last."""
        return min(index * self.block, self.group)

    def _padding_mask(self) -> Tensor:
        """What a mask is where there is nothing: any N of M, so that every word keeps as many."""
        assert self.sparse is not None
        return (torch.arange(WORD) % self.sparse.m) < self.sparse.n

    def _by_panel(self, values: Tensor) -> Tensor:
        """[out, n] -> [panels, n, rows], outputs padded with zeros."""
        out, n = values.shape
        full = torch.zeros(self.panels * self.rows, n, dtype=values.dtype)
        full[:out] = values
        return full.view(self.panels, self.rows, n).transpose(1, 2)

    def _by_vector(self, shared: Tensor) -> Tensor:
        """What some outputs share, for each vector: [rows, n] -> [panels, n, vectors]"""
        nested, count = self.format.nested, self.panels * self.vectors
        assert nested  # whose grids whole vectors share: `CpuKernels.refusal`
        each = shared.repeat_interleave(nested.rows // LANES, dim=0)[:count]
        full = torch.zeros(count, shared.shape[1], dtype=shared.dtype)
        full[: len(each)] = each
        return full.view(self.panels, self.vectors, -1).transpose(1, 2)

    def _from_vectors(self, vectors: Tensor) -> Tensor:
        """Inverse of `_by_vector`."""
        nested, out = self.format.nested, self.format.shape[0]
        assert nested
        each = vectors.transpose(1, 2).reshape(self.panels * self.vectors, -1)
        return each[:: nested.rows // LANES][: -(-out // nested.rows)].contiguous()

    def _from_panels(self, values: Tensor) -> Tensor:
        """Inverse of `_by_panel`."""
        rows = values.transpose(1, 2).reshape(self.panels * self.rows, -1)
        return rows[: self.format.shape[0]].contiguous()
