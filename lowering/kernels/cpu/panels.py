"""Storage for our CPU kernels: panels of outputs, so that one load feeds the lanes of one vector.

A *panel* is `rows` consecutive outputs: `vectors` vectors of 16 lanes, a lane one output.  Inputs
run in *blocks*: a scale group, cut where it is longer than 256, padded to whole chunks.  Four
consecutive inputs of 16 outputs are a *word vector* of 64 bytes, one byte a code, the operand of
an integer dot product.

| tensor               | shape, type                                  | when                      |
|----------------------|----------------------------------------------|---------------------------|
| panel_values         | [panels, in, rows], float                    | floats, no stream         |
| panel_codes[_high]   | [panels, units, vectors, bytes], uint8       | codes, no stream          |
| panel_stream         | [1, size], float or uint8                    | a mask that pays          |
| panel_starts         | [panels, stretches, vectors], int32          | panel_stream              |
| panel_bitmap         | [panels, word vectors, vectors], int64       | panel_stream, N:2 and N:4 |
| panel_positions      | [panels, word vectors / 4, vectors, 32], uint8 | `picked`, no bitmap     |
| panel_scale          | [panels, groups, rows]                       | quantized                 |
| panel_zero_point     | shape of panel_scale, uint8                  | asymmetric                |
| B_..., A_...         | those of the adapter's factors               | adapter                   |

They stand one behind another in the bytes of one tensor, `panels` or `picked_panels`: a kernel of
many weights could not be given as many.  Beside it is only `input_scale`, [in], if inputs have it.

A unit is as many word vectors as codes share a byte (two for 4 bits): lane `l` of byte `i` holds
byte `i` of word vector `l`.  3 bits are a plane of 2 and one of 1.  One scale for the tensor is
repeated.

Of masked weights a word vector has 64 bits that say which entries it keeps:

- Codes where M is 2 or 4 keep `64 n / m` bytes of every word vector, in order.  Where half is kept
  some processors read each code's place in its word, two bits, and no bitmap (`picking.py`).
- Other masks over codes of 4 or 8 bits, and all over floats, keep as many as they keep, one behind
  another: a *stream*, two codes of 4 bits in a byte, a whole number of bytes a word vector.
  Floats run in it input by input, as they are multiplied, codes output by output.  `panel_starts`
  says where a *stretch* begins, the word vectors of a block (of floats, of the whole row).  The
  stream has the size that the pattern's sparsity asks for, so that it depends on the format alone.
- Where a bitmap would save nothing (3:4 of 2 bits), all are stored, those removed as zeros; so are
  codes of 4 bits for processors that spread a stream more slowly than they read them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

import torch
from torch import Tensor

from trinity.lowering.kernels.cpu.bit_planes import (
    Plane,
    bitmap,
    from_bitmap,
    from_positions,
    pack_lanes,
    positions,
    turned,
    unpack_lanes,
)
from trinity.lowering.kernels.cpu.kept_entries import OVERREAD, KeptEntries
from trinity.lowering.kernels.cpu.kernel_text import LANES
from trinity.lowering.kernels.kernel_storage import Codes, KernelStorage
from trinity.lowering.rows.row_storage import raw_codes
from trinity.lowering.weight_storage import Shapes
from trinity.methods.formats import NM, CompressedWeight, Quantized, WeightFormat

WORD = 4  # inputs of one 32-bit lane of a dot product
ALIGNMENT = 64  # bytes, of a vector and of a cache line
LONGEST_BLOCK = 256  # inputs that share one activation scale: a sum of 24-bit products stays exact
INPUT_SCALE = "input_scale"  # read by code that knows nothing of panels
HALF = 32  # bytes of a word vector of which half is kept
POSITIONS = Plane("panel_positions", 2, 0)  # of kept codes in their words
SLACK = 64  # an unstructured mask may keep a 64th more than its sparsity says, and one a row


def aligned(size: int) -> int:
    """Bytes, rounded up so that what follows is aligned."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Panels(KernelStorage):
    """Where the entries of a weight of one format stand in panels.

    picks: whether positions take the bitmap's place, where they can
    expands: whether codes of 4 bits may stand in a stream
    """

    format: WeightFormat
    picks: bool = False
    expands: bool = True

    @cached_property
    def vectors(self) -> int:
        """Vectors of a panel: four for long streams, fewer where workgroups would run short."""
        wanted = 4 if self.format.shape[0] >= 512 else 2
        return min(wanted, -(-self.format.shape[0] // LANES))

    @property
    def rows(self) -> int:
        """Outputs of a panel."""
        return LANES * self.vectors

    @property
    def panels(self) -> int:
        """Panels of the weight; the last may be padding in part."""
        return -(-self.format.shape[0] // self.rows)

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        """Bit planes of the codes."""
        bits = self.format.grid.bits if self.format.grid else 0
        if bits == 3:
            return (Plane("panel_codes", 2, 0), Plane("panel_codes_high", 1, 2))
        return (Plane("panel_codes", bits, 0),) if bits else ()

    @property
    def group_blocks(self) -> int:
        """Blocks of a scale group."""
        return -(-self.group // self._longest_block)

    @property
    def _longest_block(self) -> int:
        """Rounded inputs that share a scale are a block, or several, if they may be."""
        shared = self.format.inputs.group_size if self.format.inputs else None
        fits = shared and shared < LONGEST_BLOCK and shared % (self.chunk * WORD) == 0
        return shared if shared and fits else LONGEST_BLOCK

    @property
    def rounded_blocks(self) -> int:
        """Blocks whose inputs, rounded to 8 bits, share a scale.

        0 where no inputs are rounded, or where blocks and those groups cross.
        """
        inputs, grid = self.format.inputs, self.format.grid
        if inputs is None or grid is None or grid.input_scale:
            return 0
        shared = inputs.group_size or self.format.shape[1]
        if shared % self.group == 0:
            return shared // self.group * self.group_blocks
        even = self.group % shared == 0 and self.group // shared == self.group_blocks
        return 1 if even and shared == self.block else 0

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return self.groups * self.group_blocks

    @property
    def chunk(self) -> int:
        """Word vectors that a kernel's inner loop takes at once."""
        return max([WORD, *(plane.lanes for plane in self.planes)])

    @cached_property
    def block(self) -> int:
        """Inputs of a block, padding included."""
        size, whole = -(-self.group // self.group_blocks), self.chunk * WORD
        return -(-size // whole) * whole

    @property
    def words(self) -> int:
        """Word vectors of a row."""
        return self.blocks * self.block // WORD

    @cached_property
    def sparse(self) -> NM | None:
        """The pattern, where every word of every scale group keeps equally many codes."""
        pattern = self.format.pattern if self.format.grid else None
        if isinstance(pattern, NM) and WORD % pattern.m == 0 and self.group % WORD == 0:
            return pattern
        return None

    @property
    def picked(self) -> bool:
        """Whether every kept code stands beside its position in its word."""
        return self.picks and self.sparse is not None and self.kept == HALF and self.entry_bits <= 4

    @property
    def tensor(self) -> str:
        """The name of the stored bytes: a module and parameters of another storage do not fit."""
        return "picked_panels" if self.picked else "panels"

    @cached_property
    def streamed(self) -> bool:
        """Whether kept entries stand one behind another, because that and a bitmap are smaller."""
        pattern, bits = self.format.pattern, self.entry_bits
        if pattern is None or self.sparse or bits < (4 if self.expands else 5):
            return False
        return 1 + bits * (1 - pattern.sparsity) < bits

    @property
    def entry_bits(self) -> int:
        """Of a code or float."""
        if self.format.grid:
            return self.format.grid.bits
        dtype: torch.dtype = getattr(torch, str(self.format.dtype))
        return 8 * dtype.itemsize

    @property
    def entries_per_element(self) -> int:
        """Of the stream: codes of 4 bits share a byte."""
        return 2 if self.entry_bits == 4 else 1

    @property
    def stretches(self) -> int:
        """Parts of a row whose entries are found by themselves."""
        return self.blocks if self.format.grid else 1

    @property
    def stream_room(self) -> int:
        """Elements of the stream that a mask of the pattern may need."""
        pattern, (out, d_in) = self.format.pattern, self.format.shape
        assert pattern is not None
        kept = ceil(out * d_in * (1 - pattern.sparsity))
        if not isinstance(pattern, NM):
            kept += kept // SLACK + out
        if self.entries_per_element == 1:
            return kept
        return (kept + self.panels * self.words * self.vectors + 1) // 2  # odd ones fill a byte

    @property
    def _stream(self) -> KeptEntries:
        per = self.entries_per_element
        return KeptEntries(self.format, self.stretches, per, self.stream_room)

    @property
    def kept(self) -> int:
        """Bytes of a word vector that are stored."""
        full = LANES * WORD
        return full * self.sparse.n // self.sparse.m if self.sparse else full

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
        elif self.format.dtype:
            found["panel_values"] = ((self.panels, self.format.shape[1], self.rows), dtype)
        else:
            for plane in self.planes:
                units = self.words // plane.lanes
                found[plane.name] = ((self.panels, units, self.vectors, self.kept), dtype)
        if self.picked:
            units = self.words // POSITIONS.lanes
            found[POSITIONS.name] = ((self.panels, units, self.vectors, HALF), torch.uint8)
        elif self.sparse or self.streamed:
            found["panel_bitmap"] = ((self.panels, self.words, self.vectors), torch.int64)
        if grid := self.format.grid:
            shape = (self.panels, self.groups, self.rows)
            found["panel_scale"] = (shape, getattr(torch, grid.scale_dtype))
            if not grid.symmetric:
                found["panel_zero_point"] = (shape, torch.uint8)
        return found

    def pack_values(self, values: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See `KernelStorage`."""
        if mask is not None and self.streamed:
            entries, kept = (turned(self._words(of), LANES, WORD) for of in (values, mask))
            return self._stream.pack(entries, kept)
        return {"panel_values": self._by_panel(values)}

    def unpack_values(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """See `KernelStorage`."""
        if self.streamed:
            entries, kept = self._stream.unpack(tensors)
            values, mask = (self._matrix(turned(of, WORD, LANES)) for of in (entries, kept))
            return values, mask
        return self._from_panels(tensors["panel_values"]), None

    def pack_codes(self, base: Quantized, mask: Tensor | None) -> dict[str, Tensor]:
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
        expanded = base.scale.expand(self.format.shape[0], self.groups)
        found["panel_scale"] = self._by_panel(expanded)
        if base.zero_point is not None:
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
                words |= unpack_lanes(tensors[plane.name], plane) << plane.shift
        if self.sparse:
            if self.picked:
                kept = from_positions(unpack_lanes(tensors[POSITIONS.name], POSITIONS))
            else:
                kept = from_bitmap(tensors["panel_bitmap"])
            full = torch.zeros(kept.shape, dtype=torch.uint8)
            full[kept] = words.flatten()
            words, mask = full, self._matrix(kept)
        zeros = tensors.get("panel_zero_point")
        return Codes(
            self._matrix(words),
            mask,
            self._from_panels(tensors["panel_scale"]),
            None if zeros is None else self._from_panels(zeros),
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

    def _from_panels(self, values: Tensor) -> Tensor:
        """Inverse of `_by_panel`."""
        rows = values.transpose(1, 2).reshape(self.panels * self.rows, -1)
        return rows[: self.format.shape[0]].contiguous()
