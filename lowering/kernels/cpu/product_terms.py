"""What a product adds up: an input times a weight in panels, for some rows and vectors at a time.

**Values** are widened to float32 and multiplied.  **Codes** are those of `code_terms.py`; many rows
of either take matrix units where a processor has them: `amx.py`, `amx_floats.py`.
"""

from collections.abc import Sequence
from typing import Protocol

from trinity.lowering.kernels.cpu.code_terms import DigitTerm, NarrowDigitTerm
from trinity.lowering.kernels.cpu.floats import DenseFloats, MaskedFloats
from trinity.lowering.kernels.cpu.instructions import Instructions, room_of
from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, Buffer, Kernel
from trinity.lowering.kernels.cpu.panel_geometry import WORD
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.kernels.cpu.permuting import PermutedTerm
from trinity.lowering.kernels.cpu.picking import PickedTerm
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored
from trinity.lowering.kernels.cpu.widened_term import RowLevelsTerm, WidenedTerm


class Term(Protocol):
    """A part of a sum.  room: vectors of outputs that may be in flight without spilling"""

    panels: Panels
    room: int

    def added(
        self, panel: str, rows: Sequence[str], vectors: Sequence[str], starts: Sequence[str]
    ) -> list[str]:
        """Sums that started at `starts`, with this term; row by row, vector by vector."""
        ...


class ValueTerm:
    """`x [M, stride]`, its first `in` columns, times floats."""

    def __init__(
        self, kernel: Kernel, stored: Stored, x: Buffer, instructions: Instructions
    ) -> None:
        """x: float32 [M, stride]"""
        self.kernel, self.panels, self.x = kernel, stored.panels, x
        self.room = room_of(instructions)
        self.values = DenseFloats(kernel, stored)

    def added(
        self, panel: str, rows: Sequence[str], vectors: Sequence[str], starts: Sequence[str]
    ) -> list[str]:
        """See `Term`."""
        kernel = self.kernel
        columns = [kernel.times(vector, LANES) for vector in vectors]
        inputs = self.panels.format.shape[1]
        with kernel.loop(inputs, 1, [(start, FLOATS) for start in starts]) as loop:
            values = [self.values.at([panel, loop.index, column]) for column in columns]
            loop.yielded = _multiplied(kernel, loop.carried, values, self.x, rows, loop.index)
        return loop.results


class MaskedTerm:
    """`x [M, stride]`, its first `in` columns, times a stream of floats."""

    def __init__(
        self, kernel: Kernel, stored: Stored, x: Buffer, instructions: Instructions
    ) -> None:
        """x: float32 [M, stride]"""
        self.kernel, self.panels, self.x = kernel, stored.panels, x
        self.room = room_of(instructions)
        self.weights = MaskedFloats(kernel, stored, instructions)

    def added(
        self, panel: str, rows: Sequence[str], vectors: Sequence[str], starts: Sequence[str]
    ) -> list[str]:
        """See `Term`."""
        kernel, inputs = self.kernel, self.panels.format.shape[1]
        carried = [(start, FLOATS) for start in starts]
        carried += [(at, "index") for at in self.weights.starts(panel, vectors)]
        with kernel.loop(-(-inputs // WORD), 1, carried) as loop:
            sums, positions = loop.carried[: len(starts)], loop.carried[len(starts) :]
            found = self.weights.word(panel, loop.index, vectors, positions)
            for place, values in enumerate(found):
                index = kernel.add(kernel.times(loop.index, WORD), place)
                if inputs % WORD:  # what is read past the end meets no weight
                    last = kernel.constant(inputs - 1)
                    index = kernel.value(f"arith.minui {index}, {last} : index")
                sums = _multiplied(kernel, sums, values, self.x, rows, index)
            loop.yielded = [*sums, *positions]
        return loop.results[: len(starts)]


def _multiplied(
    kernel: Kernel,
    sums: Sequence[str],
    values: Sequence[str],
    x: Buffer,
    rows: Sequence[str],
    index: str,
) -> list[str]:
    """Sums with the products of one input added; row by row, vector by vector."""
    found = []
    for r, row in enumerate(rows):
        one = kernel.splat(x.load_scalar([row, index]), FLOATS)
        for v, value in enumerate(values):
            before = sums[r * len(values) + v]
            found.append(kernel.value(f"vector.fma {value}, {one}, {before} : {FLOATS}"))
    return found


def term_of(kernel: Kernel, stored: Stored, x: Buffer, instructions: Instructions) -> Term:
    """The term of a weight.  x: float32 [M, stride] for floats, for codes as `prepared` says"""
    if stored.panels.codes:
        if dots := instructions.of(stored.panels).dots:
            if stored.panels.picked:
                return PickedTerm(kernel, stored, x, instructions, dots)
            made = NarrowDigitTerm if dots.apart else DigitTerm
            return made(kernel, stored, x, instructions, dots)
        widen = RowLevelsTerm if stored.panels.format.row_codebook else WidenedTerm
        return widen(kernel, stored, x, instructions.of(stored.panels))
    if stored.panels.permuted:
        return PermutedTerm(kernel, stored, x, instructions)
    if stored.panels.streamed:
        return MaskedTerm(kernel, stored, x, instructions)
    return ValueTerm(kernel, stored, x, instructions)
