"""Products of many rows on Intel's matrix units (AMX): the storage of `panels.py`, and activations
in the digits of `digits.py`, in another order.

One instruction multiplies 16 rows of 64 digits with 64 codes of 16 outputs and adds exactly, in 16
cycles; integer dot products of vectors take eight times as long.  A word vector is one row of the
right operand, so codes are unpacked as for those, once for all rows of the input, and stay in the
first cache while the rows pass by.

Codes are signed here, their zero point subtracted.  Of 8 bits with a zero point of their own they
do not fit a byte: those stay as stored, and sums of digits times the zero point are subtracted.

What is left is the conversion of sums to floats: for every output and block three conversions and
four multiplications, which is why blocks that one scale group fills to 256 inputs are the fastest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from trinity.lowering.kernels.cpu.amx_registers import DEEPEST, TALLEST, MatrixUnit
from trinity.lowering.kernels.cpu.code_terms import DigitTerm
from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import (
    BYTES,
    FLOATS,
    LANES,
    WORDS,
    Buffer,
    Kernel,
    write_all,
)
from trinity.lowering.kernels.cpu.panel_geometry import WORD
from trinity.lowering.kernels.cpu.product_terms import Term
from trinity.lowering.kernels.cpu.tiling import Tiling
from trinity.lowering.kernels.cpu.unpack import Chunk, spread
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored

DIGITS, CODES = 6, 7  # tile registers, behind two sets of sums


@dataclass(frozen=True)
class Unit:
    """Products of one tile of rows with one vector of the panel.

    tile: of the workgroup's own, an index   vector: of the panel
    """

    tile: str
    vector: int


class TileTerm(DigitTerm):
    """Activations in tiles of digits, times codes; some tiles of rows and a panel at once."""

    def __init__(
        self,
        kernel: Kernel,
        stored: Stored,
        x: Buffer,
        tiling: Tiling,
        instructions: Instructions,
    ) -> None:
        """x: as `tiling.shape` says"""
        assert instructions.dots  # where there are matrix units
        super().__init__(kernel, stored, x, instructions, instructions.dots)
        self.tiling, self.unit = tiling, MatrixUnit(kernel)
        # Sets of tile registers for sums: vectors take them in turn.
        self.sets = min(self.panels.vectors, 1 << (DIGITS // self.digits).bit_length() - 1)
        share, panels = tiling.own * tiling.height, self.panels
        self.codes = kernel.scratch((panels.vectors, panels.block // WORD, LANES * WORD), "i8")
        self.products = kernel.scratch((2, self.digits, TALLEST, LANES), "i32")
        self.totals = kernel.scratch((share, panels.rows), "f32")
        self.panel, part = kernel.workgroup(0), kernel.workgroup(1)
        self.first_tile = kernel.times(part, tiling.own)
        self.first_row = kernel.times(part, share)

    def write(self, terms: Sequence[Term], y0: Buffer | None, y: Buffer) -> None:
        """One panel and its workgroup's rows: y becomes the product, and terms or y0, if any.

        y0, y: `[rows, padded out]`
        """
        kernel, tiling = self.kernel, self.tiling
        self._configure()
        count = kernel.value(f"arith.subi {kernel.constant(tiling.rows)}, {self.first_row} : index")
        share = kernel.constant(tiling.own * tiling.height)
        count = kernel.value(f"arith.minsi {count}, {share} : index")
        if terms:
            self._start_with(terms)
        else:
            self._start(y0, count)
        with kernel.loop(self.panels.blocks) as loop:
            self._unpack(loop.index)
            self._add_block(loop.index)
        self._finish(y, count)
        self.unit.release()

    def _configure(self) -> None:
        """Sizes of the tile registers."""
        tiling = self.tiling
        registers = [(tiling.height, DEEPEST)] * DIGITS
        registers += [(tiling.height, tiling.depth), (tiling.depth // WORD, DEEPEST)]
        self.unit.configure(registers)

    def _start(self, y0: Buffer | None, count: str) -> None:
        """Totals that are zero, or those of y0."""
        kernel = self.kernel
        with kernel.loop(count) as row, kernel.loop(self.panels.rows, LANES) as column:
            value = kernel.constant("0.0", FLOATS)
            if y0:
                value = y0.load(self._output(row.index, column.index), FLOATS)
            self.totals.store(value, [row.index, column.index], FLOATS)

    def _start_with(self, terms: Sequence[Term]) -> None:
        """Totals that are the sum of terms."""
        kernel, height = self.kernel, self.tiling.height
        last = kernel.constant(self.tiling.rows - 1)
        with kernel.loop(self.tiling.own) as tile, kernel.loop(self.panels.vectors) as vector:
            own = [kernel.add(kernel.times(tile.index, height), i) for i in range(height)]
            rows = [kernel.add(self.first_row, row) for row in own]
            # Rows that are not there read the last one.
            rows = [kernel.value(f"arith.minsi {row}, {last} : index") for row in rows]
            sums = [kernel.constant("0.0", FLOATS)] * height
            for term in terms:
                sums = term.added(self.panel, rows, [vector.index], sums)
            for row, total in zip(own, sums, strict=True):
                self.totals.store(total, [row, kernel.times(vector.index, LANES)], FLOATS)

    def _finish(self, y: Buffer, count: str) -> None:
        """Totals where they belong."""
        kernel = self.kernel
        with kernel.loop(count) as row, kernel.loop(self.panels.rows, LANES) as column:
            value = self.totals.load([row.index, column.index], FLOATS)
            y.store(value, self._output(row.index, column.index), FLOATS)

    def _output(self, row: str, column: str) -> list[str]:
        """Where in y a row and column of the totals stand."""
        base = self.kernel.times(self.panel, self.panels.rows)
        return [self.kernel.add(self.first_row, row), self.kernel.add(base, column)]

    def _unpack(self, block: str) -> None:
        """The codes of a block in scratch memory, `[vector, word vector, 64] i8`."""
        kernel, panels = self.kernel, self.panels
        chunks = panels.block // WORD // panels.chunk
        vectors = [kernel.constant(v) for v in range(panels.vectors)]
        zeros = self._zeros(block)
        in_bytes = [spread(kernel, zero) for zero in zeros]
        starts = self.unpacker.starts(self.panel, block, vectors)
        with kernel.loop(chunks, 1, [(at, "index") for at in starts]) as loop:
            index = kernel.add(kernel.times(block, chunks), loop.index)
            first = kernel.times(loop.index, panels.chunk)
            chunk, positions = Chunk(self.panel, index, vectors, zeros), list(loop.carried)
            for i, codes in enumerate(self.unpacker.words(chunk, positions)):
                for v, code in enumerate(codes):
                    if self.tiling.signed:
                        code = kernel.value(f"arith.subi {code}, {in_bytes[v]} : {BYTES}")
                    place = [vectors[v], kernel.add(first, i), kernel.constant(0)]
                    self.codes.store(code, place, BYTES)
            loop.yielded = positions

    def _columns(self) -> list[str]:
        """The first output of every vector of the panel."""
        return [self.kernel.constant(v * LANES) for v in range(self.panels.vectors)]

    def _zeros(self, block: str) -> list[str]:
        """Zero points of a block, as words."""
        return self.zero_points(self.panel, self._group(block), self._columns())

    def _group(self, block: str) -> str:
        """The scale group of a block."""
        if self.panels.group_blocks == 1:
            return block
        by = self.kernel.constant(self.panels.group_blocks)
        return self.kernel.value(f"arith.divui {block}, {by} : index")

    def _add_block(self, block: str) -> None:
        """Add the products of a block to the totals.

        While the matrix unit multiplies for one unit, the sums of an earlier one are stored, and
        vector instructions scale those of one before that: each waits long for the other, and none
        does where two units' worth of instructions are between them.
        """
        kernel, vectors = self.kernel, self.panels.vectors
        group = self._group(block)
        scales = [self.scale([self.panel, group, column]) for column in self._columns()]
        at = _Block(block, scales, [] if self.tiling.signed else self._zeros(block))
        tile = kernel.constant(0)
        for vector in range(vectors):
            self._slot(at, self._units(vector, tile, None))
        with kernel.loop(self.tiling.own - 1) as loop:
            tile = kernel.add(loop.index, 1)
            for vector in range(vectors):
                self._slot(at, self._units(vector, tile, loop.index))
        last = kernel.constant(self.tiling.own - 1)
        for vector in range(self.sets):
            self._slot(at, self._units(vector, None, last))

    def _units(self, number: int, tile: str | None, before: str | None) -> list[Unit | None]:
        """What is multiplied, stored and scaled at once.

        number: of the unit that would be multiplied, within its tile
        tile, before: that tile, and the one before it, where they are there
        """
        found: list[Unit | None] = []
        for late in (0, self.sets - 1, self.sets):
            where = tile if number >= late else before
            vector = (number - late) % self.panels.vectors
            found.append(None if where is None else Unit(where, vector))
        return found

    def _slot(self, at: "_Block", units: Sequence[Unit | None]) -> None:
        """Multiply for a unit, store the sums of another, scale those of a third."""
        new, done, old = units
        products = self._products(at, new) if new else iter(())
        stores = self._stores(done) if done else iter(())
        rows = self._rows(at, old) if old else iter(())
        each = -(-self.tiling.height // (self.panels.block // self.tiling.depth * self.digits))
        for _ in products:
            if new != done:  # else its sums are not there yet
                next(stores, None)
            write_all(islice(rows, each))
        write_all(chain(rows, stores))

    def _products(self, at: "_Block", unit: Unit) -> Iterator[None]:
        """Products with every digit in tile registers; one step of the iterator each."""
        kernel, tiling, size = self.kernel, self.tiling, self.panels.block
        sums = self._registers(unit)
        tile = kernel.add(self.first_tile, unit.tile)
        x = kernel.add(
            kernel.times(at.block, tiling.block_words * WORD),
            kernel.times(tile, tiling.digits * tiling.tile_bytes),
        )
        stride = kernel.constant(size, "i64")
        for register in sums:
            self.unit.zero(register)
        for k in range(0, size, tiling.depth):
            codes = kernel.constant((unit.vector * size + k) * LANES)
            self.unit.load(CODES, self.codes, codes)
            for i, register in enumerate(sums):
                here = kernel.add(x, i * tiling.tile_bytes + k)
                self.unit.load(DIGITS, self.buffers["x"], here, stride)
                name = "tdpbssd" if tiling.signed else "tdpbsud"
                self.unit.multiply(name, register, DIGITS, CODES)
                yield

    def _stores(self, unit: Unit) -> Iterator[None]:
        """Tile registers to scratch memory."""
        for i, register in enumerate(self._registers(unit)):
            place = (unit.vector % 2 * self.digits + i) * TALLEST * LANES * WORD
            self.unit.store(register, self.products, self.kernel.constant(place))
            yield

    def _rows(self, at: "_Block", unit: Unit) -> Iterator[None]:
        """Add products in scratch memory to the totals, row by row."""
        kernel, column = self.kernel, self.kernel.constant(unit.vector * LANES)
        top = kernel.times(unit.tile, self.tiling.height)
        for r in range(self.tiling.height):
            own = kernel.add(top, r)
            row = kernel.add(self.first_row, own)
            parts = []
            for i in range(self.digits):
                place = [kernel.constant(n) for n in (unit.vector % 2, i, r, 0)]
                part = self.products.load(place, WORDS)
                if at.zeros:
                    total = kernel.splat(self._word(at.block, row, 1 + i), WORDS)
                    total = kernel.value(f"arith.muli {total}, {at.zeros[unit.vector]} : {WORDS}")
                    part = kernel.value(f"arith.subi {part}, {total} : {WORDS}")
                parts.append(part)
            (value,) = self.as_floats(parts)
            step = kernel.value(f"arith.bitcast {self._word(at.block, row, 0)} : i32 to f32")
            step = kernel.splat(step, FLOATS)
            value = kernel.value(f"arith.mulf {value}, {step} : {FLOATS}")
            before = self.totals.load([own, column], FLOATS)
            value = kernel.value(
                f"vector.fma {value}, {at.scales[unit.vector]}, {before} : {FLOATS}"
            )
            self.totals.store(value, [own, column], FLOATS)
            yield

    def _registers(self, unit: Unit) -> list[int]:
        """Tile registers of sums."""
        first = unit.vector % self.sets * self.digits
        return list(range(first, first + self.digits))

    def _word(self, block: str, row: str, kind: int) -> str:
        """A row's step, or the sum of a digit; see `Tiling.header`."""
        return self.buffers["x"].load_scalar([block, self.tiling.header(self.kernel, row, kind)])


@dataclass(frozen=True)
class _Block:
    """A block of inputs, with the scale of every vector of the panel.

    And its zero point, where codes stay unsigned.
    """

    block: str
    scales: list[str]
    zeros: list[str]
