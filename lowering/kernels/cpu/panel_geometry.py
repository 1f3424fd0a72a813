"""How a weight is cut into panels, and in which form its entries stand there: `panels.py` says what
each form is.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil

import torch

from trinity.lowering.kernels.cpu.bit_planes import Plane
from trinity.lowering.kernels.cpu.integers import Integers, integers_of
from trinity.lowering.kernels.cpu.kernel_text import LANES
from trinity.lowering.kernels.kernel_storage import KernelStorage
from trinity.methods.formats import NM, WeightFormat

WORD = 4  # inputs of one 32-bit lane of a dot product
LONGEST_BLOCK = 256  # inputs that share one activation scale: a sum of 24-bit products stays exact
SHORTEST_BLOCK = WORD * WORD  # inputs
HALF = 32  # bytes of a word vector of which half is kept
LONGEST_WHOLE = 16  # bits of an entry that is read faster than a lookup spreads it
SLACK = 64  # an unstructured mask may keep a 64th more than its sparsity says, and one a row


@dataclass(frozen=True)
class PanelGeometry(KernelStorage):
    """How a weight of one format is cut into panels, blocks and word vectors, and in which form its
    entries stand.

    picks: whether positions take the bitmap's place, where they can   permutes: the same of floats
    expands: whether entries of up to 16 bits may stand in a stream
    """

    format: WeightFormat
    picks: bool = False
    expands: bool = True
    permutes: bool = False

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
        bits = self.format.code_bits
        if bits == 3:
            return (Plane("panel_codes", 2, 0), Plane("panel_codes_high", 1, 2))
        return (Plane("panel_codes", bits, 0),) if bits else ()

    @property
    def codes(self) -> bool:
        """Whether entries are codes, and not floats."""
        return self.format.code_bits is not None

    @cached_property
    def integers(self) -> Integers | None:
        """What codes are, where they are integers."""
        return integers_of(self.format)

    @property
    def as_floats(self) -> bool:
        """Whether entries can be read as floats input by input: codes of a table that all rows
        share, where all are stored and no group is padded.
        """
        if not self.codes:
            return True
        if self.format.row_codebook:
            return False
        return (
            not (self.sparse or self.streamed) and self.blocks * self.block == self.format.shape[1]
        )

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
        if inputs is None or inputs.kind is None or self.integers is None:
            return 0
        if grid and grid.input_scale:
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
        """Word vectors that a kernel's inner loop takes at once.

        Short groups take as many as they have: more would be padding.
        """
        if self.group <= SHORTEST_BLOCK:
            return WORD
        return max([WORD, *(plane.lanes for plane in self.planes)])

    def units(self, plane: Plane) -> int:
        """Runs of word vectors that share bytes of a plane; the last may be padding in part."""
        return -(-self.words // plane.lanes)

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
        pattern = self.format.pattern if self.codes else None
        if isinstance(pattern, NM) and WORD % pattern.m == 0 and self.group % WORD == 0:
            return pattern
        return None

    @property
    def picked(self) -> bool:
        """Whether every kept code stands beside its position in its word: where positions pick the
        digits that codes are multiplied with.
        """
        if not self.picks or self.integers is None or self.sparse is None:
            return False
        return self.kept == HALF and self.entry_bits <= 4

    @cached_property
    def permuted(self) -> bool:
        """The same of every kept float."""
        pattern, dtype = self.format.pattern, self.format.dtype
        if not (self.permutes and dtype and isinstance(pattern, NM)):
            return False
        half = 2 * pattern.n == pattern.m and WORD % pattern.m == 0
        return half and self.format.shape[1] % WORD == 0

    @property
    def tensor(self) -> str:
        """The name of the stored bytes: a module and parameters of another storage do not fit."""
        return "picked_panels" if self.picked or self.permuted else "panels"

    @cached_property
    def streamed(self) -> bool:
        """Whether kept entries stand one behind another, because that and a bitmap are smaller."""
        pattern, bits = self.format.pattern, self.entry_bits
        if pattern is None or self.sparse or self.permuted:
            return False
        if bits < (4 if self.expands else LONGEST_WHOLE + 1):
            return False
        return 1 + bits * (1 - pattern.sparsity) < bits

    @property
    def entry_bits(self) -> int:
        """Of a code or float."""
        if self.format.code_bits:
            return self.format.code_bits
        dtype: torch.dtype = getattr(torch, str(self.format.dtype))
        return 8 * dtype.itemsize

    @property
    def entries_per_element(self) -> int:
        """Of the stream: codes of 4 bits share a byte."""
        return 2 if self.entry_bits == 4 else 1

    @property
    def stretches(self) -> int:
        """Parts of a row whose entries are found by themselves."""
        return self.blocks if self.codes else 1

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
    def kept(self) -> int:
        """Bytes of a word vector that are stored."""
        full = LANES * WORD
        return full * self.sparse.n // self.sparse.m if self.sparse else full
