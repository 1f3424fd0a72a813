"""What a linear asks of `product.comp`: specialization constants, numbers and workgroups.

The order of both is that of the source.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from trinity.lowering.kernels.padded_panels import PANEL
from trinity.lowering.kernels.strips import Strips

ENTRY = "main"  # glslc's name for every entry
TOKENS = (1, 2, 4, 8)  # of a workgroup
MOST_LANES = 256  # of a workgroup
SHARED = 16384  # bytes of shared memory that every device has
NOTHING = 0
ALL, TWO_FOUR, BITMAP = 0, 1, 2
KINDS = {"float16": 16, "bfloat16": 17, "float32": 32}
SCALE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

SECTIONS = ("scale", "zero_point", "stream", "starts", "offsets")

Source = Literal["x", "low"]


@dataclass(frozen=True)
class Term:
    """A weight in the tensors `<prefix>strips...` and what it is multiplied with.

    source: the linear's input, or t = A x
    """

    strips: Strips
    prefix: str
    source: Source

    @property
    def format(self) -> tuple[int, ...]:
        """Kind, mask, type of the scale, whether there are zero points, blocks and words of a
        unit, and words of a block.
        """
        strips, grid = self.strips, self.strips.format.grid
        kind = grid.bits if grid else KINDS[str(strips.format.dtype)]
        scale = SCALE_TYPES[getattr(torch, grid.scale_dtype)] if grid else 0
        mask = TWO_FOUR if strips.two_four else BITMAP if strips.streamed else ALL
        zeros = int(not strips.symmetric)
        return (kind, mask, scale, zeros, strips.unit_blocks, strips.unit_words, strips.vectors)

    def numbers(self, panels: int) -> tuple[int, ...]:
        """Blocks, span, and where the tensor's sections begin, in 32-bit words.

        panels: of the tensor
        """
        strips, sections = self.strips, self.strips.sections(panels)
        starts = (sections[key].start // 4 if key in sections else 0 for key in SECTIONS)
        return (strips.blocks, strips.span, *starts)


@dataclass(frozen=True)
class Launch:
    """The sum of its terms for so many tokens and some outputs, a part of the first's storage.

    part: which   low: the result is t, [tokens, panels 32], and not y, [tokens, outputs]
    """

    first: Term
    second: Term | None
    tokens: int
    part: int = 0
    low: bool = False

    @property
    def panels(self) -> range:
        """Of the first term."""
        return self.first.strips.parts[self.part]

    @property
    def outputs(self) -> int:
        """That are computed."""
        last = self.first.strips.format.shape[0] - self.panels.start * PANEL
        return len(self.panels) * PANEL if self.low else min(len(self.panels) * PANEL, last)

    @property
    def tile(self) -> int:
        """Tokens of a workgroup."""
        return next((size for size in TOKENS if self.tokens <= size), TOKENS[-1])

    @property
    def grid(self) -> tuple[int, int]:
        """Workgroups along outputs and tokens."""
        return len(self.panels), -(-self.tokens // self.tile)

    @property
    def lanes(self) -> int:
        """Of a row of a workgroup.

        Each has four outputs of a panel, or two where four for so many tokens would take all
        registers.
        """
        return 8 if self.tile < 8 else 16

    @property
    def most_slices(self) -> int:
        """Rows of a workgroup, which share the inputs; their sums find room in shared memory."""
        return min(MOST_LANES // self.lanes, SHARED // (4 * PANEL * self.tile))

    @property
    def constants(self) -> tuple[int, ...]:
        """Specialization constants behind lanes and rows, of which those depend on the device."""
        second = self.second.format if self.second else (NOTHING, 0, 0, 0, 1, 1, 1)
        return (self.tile, *self.first.format, *second)

    @property
    def name(self) -> str:
        """Of the executable; the same for the same constants."""
        return "product_" + "_".join(str(number) for number in self.constants)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The push constants of a call."""
        first = self.first.numbers(len(self.panels))
        second = (
            self.second.numbers(self.second.strips.panels) if self.second else (0,) * len(first)
        )
        return (self.outputs, self.outputs, self.tokens, self.panels.start, *first, *second)

    @property
    def operands(self) -> tuple[tuple[Term, str], tuple[Term, str]]:
        """Both terms and their tensors; the first stands for a second that is not there."""
        first = self.first, self.first.prefix + self.first.strips.names[self.part]
        if self.second is None:
            return first, first
        return first, (self.second, self.second.prefix + self.second.strips.names[0])


def launches(strips: Strips, tokens: int) -> tuple[tuple[Launch, ...], tuple[Launch, ...]]:
    """What computes `t = x A^T`, if there is an adapter, and what `x W^T [+ t B^T]`, in parts."""
    base, factors = Term(strips, "", "x"), strips.factors
    high = Term(factors["B"], "B_", "low") if factors else None
    low = (Launch(Term(factors["A"], "A_", "x"), None, tokens, low=True),) if factors else ()
    parts = range(len(strips.parts))
    return low, tuple(Launch(base, high, tokens, part) for part in parts)
