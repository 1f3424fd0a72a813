"""Storage for our Vulkan kernels: a lane has one output, and 32 lanes read 512 bytes in a row.

A *panel* is 32 outputs, one to a lane.  Inputs run in *blocks* of 32, or halves of blocks if scale
groups are so short that whole ones would be much padding; every scale group is padded to whole ones
of them.  A *unit* is as many blocks of one output as fill whole 16-byte words: 128 inputs of a
masked weight and of 3-bit codes, 64 of 2-bit codes, else 32.  Its words hold, in order:

| format                | words                                                               |
|-----------------------|---------------------------------------------------------------------|
| codes of 2, 4, 8 bits | codes, the first in the lowest bits                                 |
| codes of 3 bits       | their lower two bits, then their upper one                          |
| floats                | floats                                                              |
| 2:4                   | two entries of every four inputs, then two bits for each one's place |
| other masks           | a bit an input that says whether it is kept                          |

All of a weight stands in one tensor of bytes, `strips`, in sections:

| section         | shape, type                                   | when                          |
|-----------------|-----------------------------------------------|-------------------------------|
| words           | [panels, units, words, 32 lanes, 16 bytes]    |                               |
| scale           | [panels, groups, 32]; uint8 if of 8 bits      | codes under scales            |
| zero_point      | shape of scale, uint8                         | asymmetric                    |
| levels          | [2^bits], float32                             | codes of one table            |
| levels          | [panels, 2^bits, 32], float                   | codes of each output's own    |
| outlier_columns | [panels, room, 32], int16 or int32            | outliers                      |
| outlier_values  | [panels, room, 32], float                     | outliers                      |
| offsets, stream, starts | what is kept, and where it begins (stream.py) | other masks           |

Where that is more than a Vulkan buffer surely holds, panels go to as many tensors as it takes,
`strips_0` and so on, each with the table; a stream is not cut.  Beside them stand `input_scale`,
[in], where inputs are scaled, and the tensors of an adapter's factors, `B_...` and `A_...`.

Codes of a table are stored XOR the code of zero, and its levels in that order, so that 0 is zero;
levels are multiplied by the outer scale if there is one.  Masked codes on a grid are stored XOR the
zero point.  So bits spread to their places are zero in between.  1:2 is stored as 2:4, which it is.
Where a mask saves nothing, as over codes of 2 and 3 bits, entries that mean zero are stored.  One
scale or one row of levels for the tensor is repeated for every output.  An outlier's column is its
place among padded inputs.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from trinity.lowering.kernels import stream
from trinity.lowering.kernels.padded_panels import AS_TWO_FOUR, BLOCK, PANEL, PaddedPanels
from trinity.lowering.weight_storage import Shapes
from trinity.methods.formats import WeightFormat
from trinity.methods.formats.outliers import index_dtype
from trinity.methods.formats.scales import EIGHT_BITS

WORD = 16  # bytes
HALF = BLOCK // 2  # the least inputs that have one scale
# What every Vulkan device reads of one buffer (maxStorageBufferRange).
LARGEST = 2**27
BITMAP = 1.25  # bits a weight of a bitmap, and of where its entries begin


def whole_words(size: int) -> int:
    """Bytes, rounded up to whole words of 16."""
    return -(-size // WORD) * WORD


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
class StripGeometry(PaddedPanels):
    """Where the entries of a weight of one format stand in strips."""

    format: WeightFormat

    @property
    def bits_each(self) -> int:
        """Bits of a stored entry."""
        if self.format.code_bits:
            return self.format.code_bits
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
    def step(self) -> int:
        """See `PaddedPanels`: half a block where whole ones would be half a block more."""
        short = self.groups > 1 and -(-self.group // HALF) % 2 == 1
        return HALF if short else BLOCK

    @property
    def scales(self) -> int:
        """Scales of a row, with one for a half block behind the last group."""
        return -(-self.blocks * BLOCK // self.padded_group)

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
        made: dict[str, Section] = {}
        for name, (shape, dtype) in self._sections(panels).items():
            made[name] = Section(max([of.end for of in made.values()], default=0), shape, dtype)
        return made

    def _sections(self, panels: int) -> Shapes:
        """Shape and type of each, in order."""
        grid, own, outliers = self.format.grid, self.format.row_codebook, self.format.outliers
        found: Shapes = {"words": ((panels, self.units, self.unit_words, PANEL, WORD), torch.uint8)}
        if coded := self.format.coded:
            scale = getattr(torch, coded.scale_dtype)
            shape = (panels, self.scales, PANEL)
            found["scale"] = (shape, torch.uint8 if scale in EIGHT_BITS else scale)
            if grid and not grid.symmetric:
                found["zero_point"] = (shape, torch.uint8)
        if self.format.codebook:
            found["levels"] = ((2**self.bits_each,), torch.float32)
        if own:
            found["levels"] = ((panels, 2**self.bits_each, PANEL), getattr(torch, own.dtype))
        if outliers:
            shape = (panels, outliers.room, PANEL)
            found["outlier_columns"] = (shape, index_dtype(self.blocks * BLOCK))
            found["outlier_values"] = (shape, getattr(torch, outliers.dtype))
        if self.streamed:
            found["offsets"] = ((panels, self.units, PANEL), torch.int16)
            stored = -(-stream.room(self.format) * self.bits_each // 8)
            # Behind the last entry a kernel may read two words more.
            found["stream"] = ((1, whole_words(stored) + WORD), torch.uint8)
            found["starts"] = ((panels, self.units), torch.int32)
        return found

    @property
    def undivided(self) -> frozenset[str]:
        """Sections that do not run by panels."""
        return frozenset({"stream", "levels"} if self.format.codebook else {"stream"})

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
