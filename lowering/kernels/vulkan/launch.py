"""What a linear asks of `product.comp`: specialization constants, numbers and workgroups.

The order of both is that of the source.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from trinity.lowering.kernels.padded_panels import BLOCK, PANEL
from trinity.lowering.kernels.strips import Strips

TOKENS = (1, 2, 4, 8)  # of a workgroup
MOST_LANES = 256  # of a workgroup
SHARED = 16384  # bytes of shared memory that every device has
NOTHING = 0
ALL, TWO_FOUR, BITMAP = 0, 1, 2
KINDS = {"float16": 16, "bfloat16": 17, "float32": 32}
SCALE_TYPES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.float8_e8m0fnu: 3,
    torch.float8_e4m3fn: 4,
}
SYMMETRIC, ASYMMETRIC, TABLE, TABLES = 0, 1, 2, 3

SECTIONS = ("scale", "zero_point", "stream", "starts", "offsets")

AFTER = {None: 0, "added": 1, "gated": 2}

Source = Literal["x", "low"]
After = Literal["added", "gated"]


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
        """Kind, mask, type of the scale, what codes are, blocks and words of a unit, words of a
        block, and its parts that have scales.
        """
        strips, about = self.strips, self.strips.format
        kind = about.code_bits or KINDS[str(about.dtype)]
        mask = TWO_FOUR if strips.two_four else BITMAP if strips.streamed else ALL
        codes = SYMMETRIC if strips.symmetric else ASYMMETRIC
        if about.codebook or about.row_codebook:
            codes = TABLE if about.codebook else TABLES
        geometry = (strips.unit_blocks, strips.unit_words, strips.vectors, BLOCK // strips.step)
        return (kind, mask, self._scale, codes, *geometry)

    @property
    def _scale(self) -> int:
        """The type of scales, or of each output's levels."""
        about = self.strips.format
        if about.coded:
            return SCALE_TYPES[getattr(torch, about.coded.scale_dtype)]
        return SCALE_TYPES[getattr(torch, about.row_codebook.dtype)] if about.row_codebook else 0

    @property
    def outliers(self) -> tuple[int, int]:
        """Bits of an outlier's column, and the type of its value; 0 without."""
        if self.strips.format.outliers is None:
            return (0, 0)
        places = self.strips.sections(0)
        columns, values = (places[f"outlier_{name}"].dtype for name in ("columns", "values"))
        return (8 * columns.itemsize, SCALE_TYPES[values])

    def numbers(self, panels: int) -> tuple[int, ...]:
        """Blocks, span, and where the tensor's sections begin, in 32-bit words.

        panels: of the tensor
        """
        starts = (self.start(key, panels) for key in SECTIONS)
        return (self.strips.blocks, self.strips.span, *starts)

    def start(self, section: str, panels: int) -> int:
        """Where a section of the tensor of so many panels begins, in 32-bit words; 0 without."""
        sections = self.strips.sections(panels)
        return sections[section].start // 4 if section in sections else 0


@dataclass(frozen=True)
class Launch:
    """The sum of its terms for so many tokens and some outputs, a part of the first's storage.

    part: which   low: the result is t, [tokens, panels 32], and not y, [tokens, outputs]
    after: what becomes of the product and of other numbers for every output: their sum, or SiLU
    of the product times them
    """

    first: Term
    second: Term | None
    tokens: int
    part: int = 0
    low: bool = False
    after: After | None = None

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
        """Specialization constants behind those that depend on the device: both terms, the first
        one's outliers, and what is done to the product.
        """
        second = self.second.format if self.second else (NOTHING, 0, 0, 0, 1, 1, 1, 1)
        return (*self.first.format, *second, *self.first.outliers, AFTER[self.after])

    @property
    def numbers(self) -> tuple[int, ...]:
        """The push constants of a call."""
        panels, outliers = len(self.panels), self.first.strips.format.outliers
        first = self.first.numbers(panels)
        second = (
            self.second.numbers(self.second.strips.panels) if self.second else (0,) * len(first)
        )
        levels, columns, values = (
            self.first.start(section, panels)
            for section in ("levels", "outlier_columns", "outlier_values")
        )
        behind = (levels, outliers.room if outliers else 0, columns, values)
        of_all = self.outputs if self.low else self.first.strips.format.shape[0]
        return (
            self.outputs,
            of_all,
            self.tokens,
            self.panels.start,
            *first,
            *second,
            *behind,
        )

    @property
    def operands(self) -> tuple[tuple[Term, str], tuple[Term, str]]:
        """Both terms and their tensors; the first stands for a second that is not there."""
        first = self.first, self.first.prefix + self.first.strips.names[self.part]
        if self.second is None:
            return first, first
        return first, (self.second, self.second.prefix + self.second.strips.names[0])


def launches(
    strips: Strips, tokens: int, after: After | None = None
) -> tuple[tuple[Launch, ...], tuple[Launch, ...]]:
    """What computes `t = x A^T`, if there is an adapter, and what `x W^T [+ t B^T]`, in parts.

    after: of the latter
    """
    base, factors = Term(strips, "", "x"), strips.factors
    high = Term(factors["B"], "B_", "low") if factors else None
    low = (Launch(Term(factors["A"], "A_", "x"), None, tokens, low=True),) if factors else ()
    parts = range(len(strips.parts))
    return low, tuple(Launch(base, high, tokens, part, after=after) for part in parts)
