"""What a product adds up: an input times a weight in panels, for some rows and vectors at a time.

**Values** are widened to float32 and multiplied.  **Codes** come in three flavours:

**digits** (x86 with AVX-512 VNNI).  One instruction multiplies 64 codes with 64 digits of
activations and adds exactly, so a block is three integer dot products and one float multiply-add:
`y += scale * step * (65536 d2 + 256 d1 + d0)`.  Against widening codes to floats this is 9 instead
of 24 vector operations for 128 weights of 4 bits.  Inputs that a model declares of 8 bits are one
digit, a third of the products.

**amx** (x86 with AMX besides).  The same digits on matrix units, for six rows or more: `amx.py`.

**floats** (any CPU).  Codes are widened to float32 and multiplied there: same storage, more work.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from trinity.lowering.builder import MLIR_TYPES
from trinity.lowering.kernels.digits import EXACT, block_words
from trinity.lowering.kernels.emit import FLOATS, LANES, WORDS, Buffer, Kernel
from trinity.lowering.kernels.floats import DenseFloats, MaskedFloats
from trinity.lowering.kernels.panels import WORD, Panels
from trinity.lowering.kernels.parts import Stored, widened
from trinity.lowering.kernels.stream import BYTES
from trinity.lowering.kernels.unpack import Chunk, Unpacker

Flavour = Literal["amx", "digits", "floats"]
# From so many rows on matrix units are faster: 4096 x 4096 of int4 took 0.8 times as long at six
# rows in groups of 32 (1.1 in groups of 16), 1.2 times at four.
TILED_ROWS = 6


def for_rows(flavour: Flavour, rows: int) -> Flavour:
    """The flavour of a product of M rows: matrix units are slower where they are few."""
    return "digits" if flavour == "amx" and rows < TILED_ROWS else flavour


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

    room = 24

    def __init__(self, kernel: Kernel, stored: Stored, x: Buffer) -> None:
        """x: float32 [M, stride]"""
        self.kernel, self.panels, self.x = kernel, stored.panels, x
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

    room = 24

    def __init__(self, kernel: Kernel, stored: Stored, x: Buffer, flavour: Flavour) -> None:
        """x: float32 [M, stride]"""
        self.kernel, self.panels, self.x = kernel, stored.panels, x
        self.weights = MaskedFloats(kernel, stored, native=flavour != "floats")

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


def digits_of(panels: Panels) -> int:
    """Digits of an activation: three, or one where a model declares inputs of 8 bits."""
    return 1 if panels.rounded_blocks else EXACT


def prepared(panels: Panels, rows: int, flavour: Flavour) -> tuple[tuple[int, int, int], str]:
    """Shape and element of the activations that codes are multiplied with."""
    if flavour == "floats":
        return (rows, panels.blocks, panels.block), "f32"
    return (rows, panels.blocks, block_words(panels.block, digits_of(panels))), "i32"


class CodeTerm:
    """Activations in blocks, as floats or in digits, times codes."""

    def __init__(self, kernel: Kernel, stored: Stored, x: Buffer, flavour: Flavour) -> None:
        """x: as `prepared` says"""
        self.kernel, self.panels, self.flavour = kernel, stored.panels, flavour
        self.digits = digits_of(self.panels)
        self.room = 16 if flavour == "digits" and self.digits == 1 else 8
        self.buffers = {"x": x, **stored.buffers}
        self.unpacker = Unpacker(kernel, stored, flavour == "digits")

    def added(
        self, panel: str, rows: Sequence[str], vectors: Sequence[str], starts: Sequence[str]
    ) -> list[str]:
        """See `Term`."""
        kernel = self.kernel
        columns = [kernel.times(vector, LANES) for vector in vectors]
        with kernel.loop(self.panels.blocks, 1, [(at, FLOATS) for at in starts]) as blocks:
            group = blocks.index
            if self.panels.group_blocks > 1:
                by = kernel.constant(self.panels.group_blocks)
                group = kernel.value(f"arith.divui {blocks.index}, {by} : index")
            zeros = self._zero_points(panel, group, columns)
            sums = self._block(panel, blocks.index, rows, vectors, zeros)
            for v, column in enumerate(columns):
                scale = self._scale(panel, group, column)
                for r, _ in enumerate(rows):
                    at = r * len(vectors) + v
                    factor = scale
                    if self.flavour == "digits":
                        step = self._header(rows[r], blocks.index, self.digits)
                        step = kernel.value(f"arith.bitcast {step} : i32 to f32")
                        step = kernel.splat(step, FLOATS)
                        factor = kernel.value(f"arith.mulf {scale}, {step} : {FLOATS}")
                    sums[at] = kernel.value(
                        f"vector.fma {sums[at]}, {factor}, {blocks.carried[at]} : {FLOATS}"
                    )
            blocks.yielded = sums
        return blocks.results

    def _block(
        self,
        panel: str,
        block: str,
        rows: Sequence[str],
        vectors: Sequence[str],
        zeros: Sequence[str],
    ) -> list[str]:
        """Sum over a block of x (code - zero point), in x's step; row by row, vector by vector."""
        kernel, panels = self.kernel, self.panels
        digits = self.flavour == "digits"
        starts = (
            self._starts(block, rows, zeros)
            if digits
            else [kernel.constant("0.0", FLOATS) for _ in rows for _ in vectors]
        )
        kind = WORDS if digits else FLOATS
        positions = self.unpacker.starts(panel, block, vectors)
        carried = [(start, kind) for start in starts] + [(at, "index") for at in positions]
        chunks = panels.block // WORD // panels.chunk
        with kernel.loop(chunks, 1, carried) as loop:
            sums, positions = loop.carried[: len(starts)], loop.carried[len(starts) :]
            index = kernel.add(kernel.times(block, chunks), loop.index)
            chunk = Chunk(panel, index, vectors, zeros)
            for word, unpacked in enumerate(self.unpacker.words(chunk, positions)):
                if digits:
                    self._add_digits(sums, unpacked, (block, loop.index, word), rows)
                else:
                    self._add_floats(sums, unpacked, (block, loop.index, word), rows, zeros)
            loop.yielded = [*sums, *positions]
        results = loop.results[: len(starts)]
        return self._as_floats(results) if digits else results

    def _starts(self, block: str, rows: Sequence[str], zeros: Sequence[str]) -> list[str]:
        """Minus the zero point times the sum of each digit, so that the products may be of codes
        as they are stored.
        """
        kernel, found = self.kernel, []
        for row in rows:
            totals = [self._header(row, block, i) for i in range(self.digits)]
            for zero in zeros:
                for total in totals:
                    wide = kernel.splat(total, WORDS)
                    product = kernel.value(f"arith.muli {wide}, {zero} : {WORDS}")
                    none = kernel.constant(0, WORDS)
                    found.append(kernel.value(f"arith.subi {none}, {product} : {WORDS}"))
        return found

    def _header(self, row: str, block: str, index: int) -> str:
        """One of a block's last words: the sum of digit `index`, or the step."""
        first = block_words(self.panels.block, self.digits) - self.digits - 1
        return self.buffers["x"].load_scalar([row, block, self.kernel.constant(first + index)])

    def _add_digits(
        self, sums: list[str], codes: Sequence[str], at: tuple[str, str, int], rows: Sequence[str]
    ) -> None:
        """Add one word vector's products with every digit of every row."""
        kernel, (block, chunk, word) = self.kernel, at
        first = kernel.times(chunk, self.panels.chunk // WORD * WORD * self.digits)
        offset = word // WORD * WORD * self.digits + word % WORD
        for r, row in enumerate(rows):
            for i in range(self.digits):
                place = kernel.add(first, offset + WORD * i)
                x = kernel.splat(self.buffers["x"].load_scalar([row, block, place]), WORDS)
                x = kernel.bitcast(x, WORDS, BYTES)
                for v, code in enumerate(codes):
                    n = (r * len(codes) + v) * self.digits + i
                    sums[n] = kernel.value(
                        f'llvm.call_intrinsic "llvm.x86.avx512.vpdpbusd.512"'
                        f"({sums[n]}, {code}, {x}) : ({WORDS}, {BYTES}, {BYTES}) -> {WORDS}"
                    )

    def _add_floats(
        self,
        sums: list[str],
        codes: Sequence[str],
        at: tuple[str, str, int],
        rows: Sequence[str],
        zeros: Sequence[str],
    ) -> None:
        """Add one word vector's products in float32."""
        kernel, (block, chunk, word) = self.kernel, at
        first = kernel.times(chunk, self.panels.chunk * WORD)
        byte = kernel.constant(255, WORDS)
        lanes = [kernel.bitcast(code, BYTES, WORDS) for code in codes]
        for place in range(WORD):
            values = []
            for lane, zero in zip(lanes, zeros, strict=True):
                by = kernel.constant(8 * place, WORDS)
                part = kernel.value(f"arith.shrui {lane}, {by} : {WORDS}")
                part = kernel.value(f"arith.andi {part}, {byte} : {WORDS}")
                part = kernel.value(f"arith.subi {part}, {zero} : {WORDS}")
                values.append(kernel.value(f"arith.sitofp {part} : {WORDS} to {FLOATS}"))
            index = kernel.add(first, word * WORD + place)
            for r, row in enumerate(rows):
                x = kernel.splat(self.buffers["x"].load_scalar([row, block, index]), FLOATS)
                for v, value in enumerate(values):
                    n = r * len(values) + v
                    sums[n] = kernel.value(f"vector.fma {value}, {x}, {sums[n]} : {FLOATS}")

    def _as_floats(self, sums: Sequence[str]) -> list[str]:
        """The sums of an activation's digits as one float."""
        kernel, found = self.kernel, []
        for first in range(0, len(sums), self.digits):
            parts = [
                kernel.value(f"arith.sitofp {sums[first + i]} : {WORDS} to {FLOATS}")
                for i in range(self.digits)
            ]
            whole = parts[0]
            for i in range(1, self.digits):
                weight = kernel.constant(f"{float(256**i)}", FLOATS)
                whole = kernel.value(f"vector.fma {parts[i]}, {weight}, {whole} : {FLOATS}")
            found.append(whole)
        return found

    def _zero_points(self, panel: str, group: str, columns: Sequence[str]) -> list[str]:
        """The zero point of every lane, as words."""
        grid = self.panels.format.grid
        if grid is not None and grid.symmetric:
            return [self.kernel.constant(2 ** (grid.bits - 1), WORDS)] * len(columns)
        found = []
        for column in columns:
            narrow = self.buffers["panel_zero_point"].load([panel, group, column], "vector<16xi8>")
            found.append(self.kernel.value(f"arith.extui {narrow} : vector<16xi8> to {WORDS}"))
        return found

    def _scale(self, panel: str, group: str, column: str) -> str:
        """The scale of every lane."""
        element = MLIR_TYPES[self.panels.own_shapes()["panel_scale"][1]]
        return widened(self.kernel, self.buffers["panel_scale"], [panel, group, column], element)


def term_of(kernel: Kernel, stored: Stored, x: Buffer, flavour: Flavour) -> Term:
    """The term of a weight.  x: float32 [M, stride] for floats, for codes as `prepared` says"""
    if stored.panels.format.dtype is None:
        return CodeTerm(kernel, stored, x, flavour)
    if stored.panels.streamed:
        return MaskedTerm(kernel, stored, x, flavour)
    return ValueTerm(kernel, stored, x)
