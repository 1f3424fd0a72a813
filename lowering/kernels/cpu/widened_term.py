"""Codes widened to floats in a sum of products, block by block: for any processor.

**Integers** where it has no products of bytes: same storage as of `code_terms.py`, more work.

**Levels** that are no integers (NF4, E4M3), on every processor.  Each weight is its level, exactly,
so that a sum is off by what float32 rounds and no more.  Looking NF4 up takes three vector
operations for 16 weights with AVX-512: a shift, `vpermps`, a multiply-add; 24 for 128.  As digits
it would take more, or be less: levels of 24 bits, three bytes, are 27 (three shuffles and nine dot
products for 64, and unpacking), and levels of 16 bits 19, but off by 2^-16 of the largest.
"""

from collections.abc import Sequence

from trinity.lowering.kernels.cpu.code_terms import CodeTerm
from trinity.lowering.kernels.cpu.instructions import Instructions, room_of
from trinity.lowering.kernels.cpu.kernel_text import BYTES, FLOATS, LANES, WORDS, Buffer, Kernel
from trinity.lowering.kernels.cpu.levels import Levels
from trinity.lowering.kernels.cpu.looking_up import chosen
from trinity.lowering.kernels.cpu.panel_geometry import WORD
from trinity.lowering.kernels.cpu.unpack import Chunk
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored, widened
from trinity.lowering.mlir.builder import MLIR_TYPES


class WidenedTerm(CodeTerm):
    """Activations as floats, times codes widened to floats."""

    levels: Levels | None = None

    def __init__(
        self, kernel: Kernel, stored: Stored, x: Buffer, instructions: Instructions
    ) -> None:
        """x: float32 [M, blocks, block]"""
        super().__init__(kernel, stored, x, instructions)
        if self.levels:
            self.room = room_of(instructions)  # what is looked up serves more rows

    def value_unit(self, instructions: Instructions) -> float:
        """See `CodeTerm`."""
        if values := self.panels.format.codebook:
            self.levels = Levels(self.kernel, values.table, instructions.look_up)
        return self.levels.unit if self.levels else 1.0

    def factor(self, scale: str, row: str, block: str) -> str:
        """See `CodeTerm`."""
        return scale

    def block(
        self,
        panel: str,
        block: str,
        rows: Sequence[str],
        vectors: Sequence[str],
        zeros: Sequence[str],
    ) -> list[str]:
        """See `CodeTerm`."""
        kernel, panels = self.kernel, self.panels
        starts = [kernel.constant("0.0", FLOATS) for _ in rows for _ in vectors]
        positions = self.unpacker.starts(panel, block, vectors)
        carried = [(start, FLOATS) for start in starts] + [(at, "index") for at in positions]
        chunks = panels.block // WORD // panels.chunk
        with kernel.loop(chunks, 1, carried) as loop:
            sums, positions = loop.carried[: len(starts)], loop.carried[len(starts) :]
            index = kernel.add(kernel.times(block, chunks), loop.index)
            chunk = Chunk(panel, index, vectors, zeros)
            for word, codes in enumerate(self.unpacker.words(chunk, positions)):
                self._add(sums, codes, (block, loop.index, word), rows, zeros)
            loop.yielded = [*sums, *positions]
        return loop.results[: len(starts)]

    def _add(
        self,
        sums: list[str],
        codes: Sequence[str],
        at: tuple[str, str, int],
        rows: Sequence[str],
        zeros: Sequence[str],
    ) -> None:
        """Add one word vector's products."""
        kernel, (block, chunk, word) = self.kernel, at
        first = kernel.times(chunk, self.panels.chunk * WORD)
        byte = kernel.constant(255, WORDS)
        lanes = [kernel.bitcast(code, BYTES, WORDS) for code in codes]
        for place in range(WORD):
            values: list[str] = []
            for lane, zero in zip(lanes, zeros, strict=True):
                by = kernel.constant(8 * place, WORDS)
                part = kernel.value(f"arith.shrui {lane}, {by} : {WORDS}")
                part = kernel.value(f"arith.andi {part}, {byte} : {WORDS}")
                values.append(self._value(part, zero, len(values)))
            index = kernel.add(first, word * WORD + place)
            for r, row in enumerate(rows):
                x = kernel.splat(self.buffers["x"].load_scalar([row, block, index]), FLOATS)
                for v, value in enumerate(values):
                    n = r * len(values) + v
                    sums[n] = kernel.value(f"vector.fma {value}, {x}, {sums[n]} : {FLOATS}")

    def _value(self, code: str, zero: str, vector: int) -> str:
        """Codes of 16 outputs as floats.  vector: of those that pass at once"""
        if self.levels:
            return self.levels.of(code)
        kernel = self.kernel
        if self.nested:
            code = kernel.value(f"arith.uitofp {code} : {WORDS} to {FLOATS}")
            return kernel.value(f"arith.subf {code}, {zero} : {FLOATS}")
        code = kernel.value(f"arith.subi {code}, {zero} : {WORDS}")
        return kernel.value(f"arith.sitofp {code} : {WORDS} to {FLOATS}")


class RowLevelsTerm(WidenedTerm):
    """The same, where every output has levels of its own.

    A lane is an output, so each lane has another table.  Its entries are vectors, from which each
    bit of a code chooses: 15 choices for 16 levels, 7 for 8.
    """

    def added(
        self, panel: str, rows: Sequence[str], vectors: Sequence[str], starts: Sequence[str]
    ) -> list[str]:
        """See `Term`."""
        kernel, (shape, dtype) = self.kernel, self.panels.own_shapes()["panel_levels"]
        buffer = self.buffers["panel_levels"]
        columns = [kernel.times(vector, LANES) for vector in vectors]
        self.tables = [
            [
                widened(kernel, buffer, [panel, kernel.constant(code), column], MLIR_TYPES[dtype])
                for code in range(shape[1])
            ]
            for column in columns
        ]
        return super().added(panel, rows, vectors, starts)

    def _value(self, code: str, zero: str, vector: int) -> str:
        """See `WidenedTerm`."""
        return chosen(self.kernel, self.tables[vector], code)
