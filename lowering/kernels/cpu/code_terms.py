"""Codes in a sum of products, block by block.

**Digits** (processors with products of bytes).  A block is an exact integer dot product for each of
the activations' digits and one float multiply-add: `y += scale * step * (65536 d2 + 256 d1 + d0)`.
Against widening codes to floats this is 9 instead of 24 vector operations for 128 weights of 4 bits
(AVX-512).  Inputs that a model declares of 8 bits are one digit, a third of the products.

Where a processor has no such products, or codes are no integers: `widened_term.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trinity.lowering.kernels.cpu.digits import block_words
from trinity.lowering.kernels.cpu.dots import Dots, Partial
from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.integers import Integers
from trinity.lowering.kernels.cpu.kernel_text import BYTES, FLOATS, LANES, WORDS, Buffer, Kernel
from trinity.lowering.kernels.cpu.panel_geometry import WORD
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.kernels.cpu.scales import NestedScales, Scales
from trinity.lowering.kernels.cpu.unpack import Chunk, Unpacker
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored

NARROW_ROOM = 32  # sums that stay in the first cache


def digits_of(panels: Panels, instructions: Instructions) -> int:
    """Digits of an activation: as its type needs, or one where a model declares 8 bits."""
    return 1 if panels.rounded_blocks else instructions.digits


def prepared(
    panels: Panels, rows: int, instructions: Instructions
) -> tuple[tuple[int, int, int], str]:
    """Shape and element of the activations that codes are multiplied with."""
    if instructions.of(panels).dots is None:
        return (rows, panels.blocks, panels.block), "f32"
    return (rows, panels.blocks, block_words(panels.block, digits_of(panels, instructions))), "i32"


class CodeTerm(ABC):
    """Activations in blocks times codes."""

    room = 8

    def __init__(
        self, kernel: Kernel, stored: Stored, x: Buffer, instructions: Instructions
    ) -> None:
        """x: as `prepared` says"""
        self.kernel, self.panels = kernel, stored.panels
        self.buffers = {"x": x, **stored.buffers}
        self.unpacker = Unpacker(kernel, stored, instructions)
        unit = self.value_unit(instructions)
        self.nested = NestedScales(kernel, stored) if self.panels.format.nested else None
        self.scales = Scales(kernel, stored, unit) if self.panels.format.coded else self.nested

    @abstractmethod
    def value_unit(self, instructions: Instructions) -> float:
        """What values are to be multiplied with, beside their scale."""

    @abstractmethod
    def block(
        self,
        panel: str,
        block: str,
        rows: Sequence[str],
        vectors: Sequence[str],
        zeros: Sequence[str],
    ) -> list[str]:
        """Sum over a block of x (code - zero point), in x's step; row by row, vector by vector."""

    @abstractmethod
    def factor(self, scale: str, row: str, block: str) -> str:
        """What sums of a block are multiplied with.  scale: of every lane's weights"""

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
            zeros = self.zero_points(panel, group, columns)
            sums = self.block(panel, blocks.index, rows, vectors, zeros)
            for v, column in enumerate(columns):
                scale = self.scale([panel, group, column])
                for r, row in enumerate(rows):
                    at, factor = r * len(vectors) + v, self.factor(scale, row, blocks.index)
                    sums[at] = kernel.value(
                        f"vector.fma {sums[at]}, {factor}, {blocks.carried[at]} : {FLOATS}"
                    )
            blocks.yielded = sums
        return blocks.results

    def scale(self, place: Sequence[str]) -> str:
        """What a step of 16 outputs' codes is.  place: panel, group, first output in the panel"""
        return self.scales.at(place) if self.scales else self.kernel.constant("1.0", FLOATS)

    def zero_points(self, panel: str, group: str, columns: Sequence[str]) -> list[str]:
        """The zero point of every lane, as words; as floats where scales are codes."""
        integers = self.panels.integers
        if self.nested:
            return [self.nested.zero([panel, group, column]) for column in columns]
        if integers is None:
            return [self.kernel.constant(0, WORDS)] * len(columns)  # levels have none
        if integers.zero is not None:
            return [self.kernel.constant(integers.zero, WORDS)] * len(columns)
        found = []
        for column in columns:
            narrow = self.buffers["panel_zero_point"].load([panel, group, column], "vector<16xi8>")
            found.append(self.kernel.value(f"arith.extui {narrow} : vector<16xi8> to {WORDS}"))
        return found


class DigitTerm(CodeTerm):
    """Activations in digits, times codes; registers hold the sums of a whole tile."""

    def __init__(
        self, kernel: Kernel, stored: Stored, x: Buffer, instructions: Instructions, dots: Dots
    ) -> None:
        """x: as `prepared` says"""
        super().__init__(kernel, stored, x, instructions)
        self.dots, self.digits = dots, digits_of(self.panels, instructions)
        self.room = 16 if self.digits == 1 else 8

    def value_unit(self, instructions: Instructions) -> float:
        """See `CodeTerm`."""
        return self.integers.step

    @property
    def integers(self) -> Integers:
        """What the codes are."""
        assert self.panels.integers  # else there are no digits
        return self.panels.integers

    @property
    def chunks(self) -> int:
        """Chunks of a block."""
        return self.panels.block // WORD // self.panels.chunk

    def block(
        self,
        panel: str,
        block: str,
        rows: Sequence[str],
        vectors: Sequence[str],
        zeros: Sequence[str],
    ) -> list[str]:
        """See `CodeTerm`."""
        kernel = self.kernel
        starts = self.starts(block, rows, zeros)
        positions = self.unpacker.starts(panel, block, vectors)
        carried = [(start, WORDS) for start in starts] + [(at, "index") for at in positions]
        with kernel.loop(self.chunks, 1, carried) as loop:
            sums, positions = loop.carried[: len(starts)], loop.carried[len(starts) :]
            partial = [self.dots.begun(kernel, before) for before in sums]
            index = kernel.add(kernel.times(block, self.chunks), loop.index)
            chunk = Chunk(panel, index, vectors, zeros)
            for word, codes in enumerate(self.unpacker.words(chunk, positions)):
                operands = [
                    self.dots.operands(kernel, code, self.integers.largest) for code in codes
                ]
                at = self.place(loop.index, word)
                for r, row in enumerate(rows):
                    own = slice(r * len(codes) * self.digits, (r + 1) * len(codes) * self.digits)
                    partial[own] = self.multiplied((row, block, at), operands, partial[own])
            ended = zip(sums, partial, strict=True)
            sums = [self.dots.ended(kernel, before, after) for before, after in ended]
            loop.yielded = [*sums, *positions]
        sums = self.as_floats(loop.results[: len(starts)])
        return self.centred(sums, block, rows, zeros)

    def place(self, chunk: str, word: int) -> str:
        """Where in a block of activations the first digits of a chunk's word vector stand."""
        kernel = self.kernel
        first = kernel.times(chunk, self.panels.chunk // WORD * WORD * self.digits)
        return kernel.add(first, word // WORD * WORD * self.digits + word % WORD)

    def multiplied(
        self, at: tuple[str, str, str], codes: Sequence[Partial], partial: Sequence[Partial]
    ) -> list[Partial]:
        """With the products of a word vector and one row's digits.

        at: row, block and place   codes: of each vector of outputs
        partial: vector by vector, digit by digit
        """
        kernel, (row, block, place), found = self.kernel, at, list(partial)
        for i in range(self.digits):
            word = self.buffers["x"].load_scalar([row, block, kernel.add(place, WORD * i)])
            x = self.dots.inputs(kernel, word)
            for v, code in enumerate(codes):
                n = v * self.digits + i
                found[n] = self.dots.added(kernel, found[n], code, x)
        return found

    def factor(self, scale: str, row: str, block: str) -> str:
        """See `CodeTerm`."""
        kernel = self.kernel
        step = self._header(row, block, self.digits)
        step = kernel.splat(kernel.value(f"arith.bitcast {step} : i32 to f32"), FLOATS)
        return kernel.value(f"arith.mulf {scale}, {step} : {FLOATS}")

    def starts(self, block: str, rows: Sequence[str], zeros: Sequence[str]) -> list[str]:
        """Minus the zero point times the sum of each digit, so that the products may be of codes
        as they are stored.
        """
        kernel, found = self.kernel, []
        below = kernel.constant(self.dots.below(self.integers.largest), WORDS)
        if self.nested:  # whose zero points come off afterwards: `centred`
            less = [below for _ in zeros]
        else:
            less = [kernel.value(f"arith.subi {below}, {zero} : {WORDS}") for zero in zeros]
        for row in rows:
            totals = [self._header(row, block, i) for i in range(self.digits)]
            for zero in less:
                for total in totals:
                    wide = kernel.splat(total, WORDS)
                    found.append(kernel.value(f"arith.muli {wide}, {zero} : {WORDS}"))
        return found

    def centred(
        self, sums: Sequence[str], block: str, rows: Sequence[str], zeros: Sequence[str]
    ) -> list[str]:
        """Sums less zero points that are floats times the sum of inputs; row by row."""
        if not self.nested:
            return list(sums)
        kernel, found = self.kernel, []
        for r, row in enumerate(rows):
            total = kernel.splat(self._total(row, block), FLOATS)
            for v, zero in enumerate(zeros):
                before = sums[r * len(zeros) + v]
                found.append(kernel.value(f"vector.fma {total}, {zero}, {before} : {FLOATS}"))
        return found

    def _total(self, row: str, block: str) -> str:
        """Minus the sum of a block's inputs, in the input's steps, f32."""
        kernel = self.kernel
        found = kernel.constant("0.0", "f32")
        for i in reversed(range(self.digits)):
            digit = kernel.value(f"arith.sitofp {self._header(row, block, i)} : i32 to f32")
            by = kernel.constant(f"{-float(256**i)}", "f32")
            found = kernel.value(f"math.fma {digit}, {by}, {found} : f32")
        return found

    def _header(self, row: str, block: str, index: int) -> str:
        """One of a block's last words: the sum of digit `index`, or the step."""
        first = block_words(self.panels.block, self.digits) - self.digits - 1
        return self.buffers["x"].load_scalar([row, block, self.kernel.constant(first + index)])

    def as_floats(self, sums: Sequence[str]) -> list[str]:
        """The sums of an activation's digits as one float.

        Two digits' sums are one word: of 256 products of 255 and 128 it needs 31 bits.
        """
        kernel, found = self.kernel, []
        for first in range(0, len(sums), self.digits):
            whole, *others = sums[first : first + self.digits]
            if others:
                by = kernel.constant(8, WORDS)
                upper = kernel.value(f"arith.shli {others.pop(0)}, {by} : {WORDS}")
                whole = kernel.value(f"arith.addi {whole}, {upper} : {WORDS}")
            whole = kernel.value(f"arith.sitofp {whole} : {WORDS} to {FLOATS}")
            for other in others:
                weight = kernel.constant(f"{float(256**2)}", FLOATS)
                part = kernel.value(f"arith.sitofp {other} : {WORDS} to {FLOATS}")
                whole = kernel.value(f"vector.fma {part}, {weight}, {whole} : {FLOATS}")
            found.append(whole)
        return found


class NarrowDigitTerm(DigitTerm):
    """The same where registers hold the sums of one row and one vector of outputs.

    Vectors and rows pass by in loops, sums stay in the first cache from block to block, and with
    several rows so do the codes of a block, unpacked once for all of them.
    """

    def __init__(
        self, kernel: Kernel, stored: Stored, x: Buffer, instructions: Instructions, dots: Dots
    ) -> None:
        """x: as `prepared` says"""
        super().__init__(kernel, stored, x, instructions, dots)
        self.room = NARROW_ROOM
        self.totals = kernel.scratch((NARROW_ROOM, LANES), "f32")
        self.codes = kernel.scratch((self.panels.block // WORD, LANES * WORD), "i8")

    def added(
        self, panel: str, rows: Sequence[str], vectors: Sequence[str], starts: Sequence[str]
    ) -> list[str]:
        """See `Term`.  rows, vectors: one behind another"""
        kernel, zero = self.kernel, self.kernel.constant(0)
        for i, start in enumerate(starts):
            self.totals.store(start, [kernel.constant(i), zero], FLOATS)
        with kernel.loop(self.panels.blocks) as blocks, kernel.loop(len(vectors)) as loop:
            vector = kernel.value(f"arith.addi {vectors[0]}, {loop.index} : index")
            group = blocks.index
            if self.panels.group_blocks > 1:
                by = kernel.constant(self.panels.group_blocks)
                group = kernel.value(f"arith.divui {blocks.index}, {by} : index")
            column = kernel.times(vector, LANES)
            (own_zero,) = self.zero_points(panel, group, [column])
            scale = self.scale([panel, group, column])
            at = CodesAt(panel, blocks.index, vector, own_zero)
            if len(rows) == 1:
                self._add(at, rows[0], scale, loop.index, None)
            else:
                self._unpack(at)
                with kernel.loop(len(rows)) as each:
                    row = kernel.value(f"arith.addi {rows[0]}, {each.index} : index")
                    place = kernel.add(kernel.times(each.index, len(vectors)), loop.index)
                    self._add(at, row, scale, place, self.codes)
        places = [kernel.constant(i) for i in range(len(starts))]
        return [self.totals.load([place, zero], FLOATS) for place in places]

    def _add(self, at: "CodesAt", row: str, scale: str, place: str, codes: Buffer | None) -> None:
        """Add a block's product to the totals.  place: in them   codes: unpacked ones"""
        kernel, zero = self.kernel, self.kernel.constant(0)
        (sums,) = self._sums(at, row, codes)
        before = self.totals.load([place, zero], FLOATS)
        factor = self.factor(scale, row, at.block)
        total = kernel.value(f"vector.fma {sums}, {factor}, {before} : {FLOATS}")
        self.totals.store(total, [place, zero], FLOATS)

    def _sums(self, at: "CodesAt", row: str, codes: Buffer | None) -> list[str]:
        """As `block`, of one row and vector."""
        kernel, dots = self.kernel, self.dots
        starts = self.starts(at.block, [row], [at.zero])
        positions = self.unpacker.starts(at.panel, at.block, [at.vector]) if codes is None else []
        carried = [(start, WORDS) for start in starts] + [(of, "index") for of in positions]
        span = self._span()
        with kernel.loop(self.chunks // span, 1, carried) as loop:
            sums, positions = loop.carried[: len(starts)], loop.carried[len(starts) :]
            partial = [dots.begun(kernel, before) for before in sums]
            for i in range(span):
                chunk = kernel.add(kernel.times(loop.index, span), i)
                words = self._words(at, chunk, positions) if codes is None else self._kept(chunk)
                for word, code in enumerate(words):
                    operands = [dots.operands(kernel, code, self.integers.largest)]
                    place = row, at.block, self.place(chunk, word)
                    partial = self.multiplied(place, operands, partial)
            ended = zip(sums, partial, strict=True)
            sums = [dots.ended(kernel, before, after) for before, after in ended]
            loop.yielded = [*sums, *positions]
        found = self.as_floats(loop.results[: len(starts)])
        return self.centred(found, at.block, [row], [at.zero])

    def _span(self) -> int:
        """Chunks whose products are added before sums are `ended`."""
        most = max(1, self.dots.together(self.integers.largest) // self.panels.chunk)
        return max(n for n in range(1, most + 1) if self.chunks % n == 0)

    def _words(self, at: "CodesAt", chunk: str, positions: list[str]) -> Iterator[str]:
        """The codes of every word vector of a chunk.  positions: moved on"""
        kernel = self.kernel
        index = kernel.add(kernel.times(at.block, self.chunks), chunk)
        read = Chunk(at.panel, index, [at.vector], [at.zero])
        return (code for (code,) in self.unpacker.words(read, positions))

    def _unpack(self, at: "CodesAt") -> None:
        """The codes of a block in scratch memory."""
        kernel, chunk = self.kernel, self.panels.chunk
        starts = self.unpacker.starts(at.panel, at.block, [at.vector])
        with kernel.loop(self.chunks, 1, [(of, "index") for of in starts]) as loop:
            positions = list(loop.carried)
            first = kernel.times(loop.index, chunk)
            for word, code in enumerate(self._words(at, loop.index, positions)):
                self.codes.store(code, [kernel.add(first, word), kernel.constant(0)], BYTES)
            loop.yielded = positions

    def _kept(self, chunk: str) -> Iterator[str]:
        """Those of a chunk, from there."""
        kernel = self.kernel
        first = kernel.times(chunk, self.panels.chunk)
        for word in range(self.panels.chunk):
            yield self.codes.load([kernel.add(first, word), kernel.constant(0)], BYTES)


class CodesAt(NamedTuple):
    """Where the codes of a block of one vector of outputs are, and their zero point."""

    panel: str
    block: str
    vector: str
    zero: str
