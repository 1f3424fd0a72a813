"""Storage for our CPU kernels: panels of outputs, so that one load feeds the lanes of one vector.

A *panel* is `rows` consecutive outputs: `vectors` vectors of 16 lanes, a lane one output.  Inputs
run in *blocks*: a scale group, cut where it is longer than 256, padded to whole chunks.  Four
consecutive inputs of 16 outputs are a *word vector* of 64 bytes, one byte a code, the operand of
an integer dot product.

| tensor               | shape, type                                           | when             |
|----------------------|-------------------------------------------------------|------------------|
| panel_values         | [panels, in, rows], float                             | not quantized    |
| panel_codes[_high]   | [panels, units, vectors, bytes], uint8                | quantized        |
| panel_bitmap         | [panels, word vectors, vectors], int64                | N:2 and N:4      |
| panel_scale          | [panels, groups, rows]                                | quantized        |
| panel_zero_point     | shape of panel_scale, uint8                           | asymmetric       |
| B_..., A_...         | those of the adapter's factors                        | adapter          |

They stand one behind another in the bytes of one tensor, `panels`: a kernel of many weights could
not be given as many tensors.  Beside it stands only `input_scale`, [in], where inputs are scaled.

A unit is as many word vectors as codes share a byte (two for 4 bits): lane `l` of byte `i` holds
byte `i` of word vector `l`.  3 bits are a plane of 2 and one of 1.  N:M keeps `64 n / m` bytes of a
word vector, in order, and 64 bits that say where they go, if M is 2 or 4.  Codes of any other mask
are all stored, those it removes as zeros: the kernel then reads what it would without a mask.  One
scale for the tensor is repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from trinity.lowering.kernels.emit import LANES
from trinity.lowering.kernels.stored import FACTORS, Codes, KernelStorage, Shapes
from trinity.lowering.storage import raw_codes
from trinity.methods.formats import NM, CompressedWeight, Quantized, WeightFormat

WORD = 4  # inputs of one 32-bit lane of a dot product
ALIGNMENT = 64  # bytes, of a vector and of a cache line
LONGEST_BLOCK = 256  # inputs that share one activation scale: a sum of 24-bit products stays exact
INPUT_SCALE = "input_scale"  # read by code that knows nothing of panels


def aligned(size: int) -> int:
    """Bytes, rounded up so that what follows is aligned."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Plane:
    """Bits `shift` to `shift + bits` of every code."""

    name: str
    bits: int
    shift: int

    @property
    def lanes(self) -> int:
        """Word vectors that share bytes."""
        return 8 // self.bits


def refusal(weight_format: WeightFormat) -> str | None:
    """Why panels cannot hold a format, or None."""
    for name in FACTORS if weight_format.adapter else ():
        if reason := refusal(weight_format.factor(name)):
            return f"adapter {name}: {reason}"
    if weight_format.pattern is not None and weight_format.grid is None:
        return "masked floats"
    return None


@dataclass(frozen=True)
class Panels(KernelStorage):
    """Where the entries of a weight of one format stand in panels."""

    format: WeightFormat

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
        """Blocks whose inputs, rounded to 8 bits, share a scale; 0 where none are, or blocks and
        those groups cross.
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
        return max(WORD, *(plane.lanes for plane in self.planes))

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
        """The pattern whose kept codes alone are stored; None where every code is.

        Every word of every scale group must keep as many.
        """
        pattern = self.format.pattern
        if isinstance(pattern, NM) and WORD % pattern.m == 0 and self.group % WORD == 0:
            return pattern
        return None

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
        found: Shapes = {"panels": ((self.offsets[""],), torch.uint8)}
        return found | {name: parts[name] for name in parts if name == INPUT_SCALE}

    def pack(self, weight: CompressedWeight) -> dict[str, Tensor]:
        """See `KernelStorage`."""
        parts = self.pack_parts(weight)
        together = torch.zeros(self.offsets[""], dtype=torch.uint8)
        for name, start in self.offsets.items():
            if name:
                bytes_ = parts[name].flatten().view(torch.uint8)
                together[start : start + len(bytes_)] = bytes_
        return {"panels": together} | {n: parts[n] for n in parts if n == INPUT_SCALE}

    def unpack(self, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """See `KernelStorage`."""
        parts = {name: tensors[name] for name in tensors if name == INPUT_SCALE}
        for name, (shape, dtype) in self.part_shapes().items():
            if name != INPUT_SCALE:
                start = self.offsets[name]
                size = prod(shape) * dtype.itemsize
                parts[name] = tensors["panels"][start : start + size].view(dtype).view(shape)
        return self.unpack_parts(parts)

    def own_shapes(self) -> Shapes:
        """See `KernelStorage`."""
        found: Shapes = {}
        if self.format.dtype:
            dtype = getattr(torch, self.format.dtype)
            found["panel_values"] = ((self.panels, self.format.shape[1], self.rows), dtype)
        for plane in self.planes:
            units = self.words // plane.lanes
            found[plane.name] = ((self.panels, units, self.vectors, self.kept), torch.uint8)
        if self.sparse:
            found["panel_bitmap"] = ((self.panels, self.words, self.vectors), torch.int64)
        if grid := self.format.grid:
            shape = (self.panels, self.groups, self.rows)
            found["panel_scale"] = (shape, getattr(torch, grid.scale_dtype))
            if not grid.symmetric:
                found["panel_zero_point"] = (shape, torch.uint8)
        return found

    def pack_values(self, values: Tensor) -> dict[str, Tensor]:
        """See `KernelStorage`."""
        return {"panel_values": self._by_panel(values)}

    def unpack_values(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See `KernelStorage`."""
        return self._from_panels(tensors["panel_values"])

    def pack_codes(self, base: Quantized, mask: Tensor | None) -> dict[str, Tensor]:
        """See `KernelStorage`."""
        words = self._words(raw_codes(base, mask))
        found = {}
        if mask is not None and self.sparse:
            kept = self._words(mask, padding=self._padding_mask())
            found["panel_bitmap"] = _bitmap(kept)
            words = words[kept].view(*words.shape[:-1], self.kept)
        for plane in self.planes:
            found[plane.name] = _pack_lanes((words >> plane.shift) & (2**plane.bits - 1), plane)
        expanded = base.scale.expand(self.format.shape[0], self.groups)
        found["panel_scale"] = self._by_panel(expanded)
        if base.zero_point is not None:
            zeros = base.zero_point.expand(self.format.shape[0], self.groups)
            found["panel_zero_point"] = self._by_panel(zeros)
        return found

    def unpack_codes(self, tensors: Mapping[str, Tensor]) -> Codes:
        """See `KernelStorage`."""
        words = torch.zeros((self.panels, self.words, self.vectors, self.kept), dtype=torch.uint8)
        for plane in self.planes:
            words |= _unpack_lanes(tensors[plane.name], plane) << plane.shift
        mask = None
        if self.sparse:
            kept = _from_bitmap(tensors["panel_bitmap"])
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


def _pack_lanes(words: Tensor, plane: Plane) -> Tensor:
    """[panels, words, vectors, bytes] -> [panels, units, vectors, bytes]"""
    panels, _, vectors, size = words.shape
    split = words.view(panels, -1, plane.lanes, vectors, size)
    lanes = [split[:, :, lane] << (plane.bits * lane) for lane in range(plane.lanes)]
    return torch.stack(lanes).sum(0).to(torch.uint8)


def _unpack_lanes(packed: Tensor, plane: Plane) -> Tensor:
    """Inverse of `_pack_lanes`."""
    moved = [(packed >> (plane.bits * i)) & (2**plane.bits - 1) for i in range(plane.lanes)]
    return torch.stack(moved, dim=2).flatten(1, 2)


def _bitmap(kept: Tensor) -> Tensor:
    """bool [..., 64] -> int64 [...], bit i for entry i"""
    weights = torch.ones(64, dtype=torch.int64) << torch.arange(64)
    return (kept.to(torch.int64) * weights).sum(-1)


def _from_bitmap(bitmap: Tensor) -> Tensor:
    """Inverse of `_bitmap`."""
    return ((bitmap[..., None] >> torch.arange(64)) & 1).bool()
