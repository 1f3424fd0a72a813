"""Kernels for CPUs: products with packed weights, as accurate as float32, at the speed of bytes.

**digits** (x86 with AVX-512 VNNI).  A block of activations becomes 24-bit integers, `x = step * q`,
and `q` three signed base-256 digits.  One instruction multiplies 64 codes with 64 digits and adds
exactly, so a product is three integer dot products a block, and one float multiply-add:
`y += scale * step * (65536 d2 + 256 d1 + d0)`.  `q` is rounded once, to 2^-24 of the block's
largest activation, which is what float32 would round every partial sum to.  Against widening codes
to floats this is 9 instead of 24 vector operations for 128 weights of 4 bits.

**floats** (any CPU).  Codes are widened to float32 and multiplied there: same storage, more work.

Both take every M: codes are unpacked once for a tile of rows of the input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trinity.lowering.builder import MLIR_TYPES
from trinity.lowering.kernels.emit import FLOATS, LANES, WORDS, Buffer, Kernel
from trinity.lowering.kernels.panels import WORD, Panels, Plane

Flavour = Literal["digits", "floats"]
DIGITS = 3
LARGEST = 127 * 65536  # of a quantized activation, so that rounding cannot carry past digit 127
BYTES = "vector<64xi8>"
CHUNK = 16  # inputs whose digits stand together: 4 words a digit
SUMS = DIGITS + 1  # words at the end of a block: sums of its digits, and its step


@dataclass(frozen=True)
class Tile:
    """Rows of the input from `start` to `stop`, `rows` at a time with `vectors` of the panel."""

    start: int
    stop: int
    rows: int
    vectors: int


def block_words(block: int) -> int:
    """Words that hold the digits of a block, their sums and the step."""
    return block // CHUNK * WORD * DIGITS + SUMS


def prepare(rows: int, blocks: int, block: int) -> Kernel:
    """`[rows, blocks, block] f32 -> [rows, blocks, words] i32`: digits, their sums, the step.

    One workgroup a row and block.
    """
    kernel = Kernel(f"prepare_{rows}x{blocks}x{block}")
    words = block_words(block)
    x = kernel.binding((rows, blocks, block), "f32")
    out = kernel.binding((rows, blocks, words), "i32")
    here = [kernel.workgroup(1), kernel.workgroup(0)]
    zeros, floats = kernel.constant(0, WORDS), kernel.constant("0.0", FLOATS)
    with kernel.loop(block, LANES, [(floats, FLOATS)]) as loop:
        part = kernel.value(f"math.absf {x.load([*here, loop.index], FLOATS)} : {FLOATS}")
        largest = kernel.value(f"arith.maximumf {loop.carried[0]}, {part} : {FLOATS}")
        loop.yielded = [largest]
    largest = kernel.value(f"vector.reduction <maximumf>, {loop.results[0]} : {FLOATS} into f32")
    smallest = kernel.constant("1.0e-30", "f32")  # a block of zeros has a step too
    largest = kernel.value(f"arith.maximumf {largest}, {smallest} : f32")
    limit = kernel.constant(f"{float(LARGEST)}", "f32")
    step = kernel.value(f"arith.divf {largest}, {limit} : f32")
    inverse = kernel.splat(kernel.value(f"arith.divf {limit}, {largest} : f32"), FLOATS)
    with kernel.loop(block, LANES, [(zeros, WORDS)] * DIGITS) as loop:
        values = x.load([*here, loop.index], FLOATS)
        values = kernel.value(f"arith.mulf {values}, {inverse} : {FLOATS}")
        values = kernel.value(f"math.roundeven {values} : {FLOATS}")
        rest = kernel.value(f"arith.fptosi {values} : {FLOATS} to {WORDS}")
        chunk = kernel.value(f"arith.divui {loop.index}, {kernel.constant(CHUNK)} : index")
        place = kernel.times(chunk, WORD * DIGITS)
        for i in range(DIGITS):
            digit, rest = _low_digit(kernel, rest) if i < DIGITS - 1 else (rest, rest)
            narrow = kernel.value(f"arith.trunci {digit} : {WORDS} to vector<16xi8>")
            narrow = kernel.bitcast(narrow, "vector<16xi8>", "vector<4xi32>")
            out.store(narrow, [*here, kernel.add(place, WORD * i)], "vector<4xi32>")
            total = kernel.value(f"arith.addi {loop.carried[i]}, {digit} : {WORDS}")
            loop.yielded.append(total)
    for i in range(DIGITS):
        total = kernel.value(f"vector.reduction <add>, {loop.results[i]} : {WORDS} into i32")
        out.store_scalar(total, [*here, kernel.constant(words - SUMS + i)])
    step = kernel.value(f"arith.bitcast {step} : f32 to i32")
    out.store_scalar(step, [*here, kernel.constant(words - 1)])
    return kernel


def _low_digit(kernel: Kernel, value: str) -> tuple[str, str]:
    """The signed lowest base-256 digit, and what is left, divided by 256."""
    by = kernel.constant(24, WORDS)
    digit = kernel.value(f"arith.shli {value}, {by} : {WORDS}")
    digit = kernel.value(f"arith.shrsi {digit}, {by} : {WORDS}")
    rest = kernel.value(f"arith.subi {value}, {digit} : {WORDS}")
    return digit, kernel.value(f"arith.shrsi {rest}, {kernel.constant(8, WORDS)} : {WORDS}")


def tiles(rows: int, vectors: int, sums: int, registers: int) -> list[Tile]:
    """Tiles over the rows of the input, for `sums` accumulators an output vector.

    A tile's accumulators fit `registers`; a full panel's vectors are taken where rows are few.
    """
    tall = max(1, registers // sums)
    if rows >= tall:
        whole = rows // tall * tall
        found = [Tile(0, whole, tall, 1)]
    else:
        whole, found = 0, []
    if whole < rows:
        left = rows - whole
        wide = max(1, min(vectors, registers // (sums * left)))
        while vectors % wide:
            wide -= 1
        found.append(Tile(whole, rows, left, wide))
    return found


class Product:
    """`activations, panels[, y0] -> [rows, padded out]` for one format."""

    def __init__(
        self, panels: Panels, rows: int, flavour: Flavour, name: str, start: bool = False
    ) -> None:
        """rows: M, those of the input   start: whether y0 is there to be added to."""
        self.panels, self.rows, self.flavour, self.start = panels, rows, flavour, start
        self.kernel = Kernel(name)
        self.buffers: dict[str, Buffer] = {}

    def write(self) -> Kernel:
        """The kernel; a workgroup takes one panel."""
        kernel, panels = self.kernel, self.panels
        width, element = panels.block, "f32"
        if self.flavour == "digits":
            width, element = block_words(panels.block), "i32"
        self.buffers["x"] = kernel.binding((self.rows, panels.blocks, width), element)
        for name, (shape, dtype) in panels.kernel_shapes().items():
            self.buffers[name] = kernel.binding(shape, MLIR_TYPES[dtype])
        outputs = panels.panels * panels.rows
        if self.start:
            self.buffers["y0"] = kernel.binding((self.rows, outputs), "f32")
        self.buffers["y"] = kernel.binding((self.rows, outputs), "f32")
        panel = kernel.workgroup(0)
        sums, registers = (DIGITS, 24) if self.flavour == "digits" else (1, 8)
        for tile in tiles(self.rows, panels.vectors, sums, registers):
            with kernel.loop((tile.stop - tile.start) // tile.rows) as outer:
                first = kernel.add(kernel.times(outer.index, tile.rows), tile.start)
                rows = [kernel.add(first, i) for i in range(tile.rows)]
                with kernel.loop(panels.vectors, tile.vectors) as inner:
                    vectors = [kernel.add(inner.index, i) for i in range(tile.vectors)]
                    self._tile(panel, rows, vectors)
        return kernel

    def _tile(self, panel: str, rows: Sequence[str], vectors: Sequence[str]) -> None:
        """All blocks of a tile, and its outputs."""
        kernel = self.kernel
        base = kernel.times(panel, self.panels.rows)
        places = [
            [row, kernel.value(f"arith.addi {base}, {kernel.times(vector, LANES)} : index")]
            for row in rows
            for vector in vectors
        ]
        none = kernel.constant("0.0", FLOATS)
        starts = [self.buffers["y0"].load(at, FLOATS) if self.start else none for at in places]
        with kernel.loop(self.panels.blocks, 1, [(at, FLOATS) for at in starts]) as blocks:
            group = blocks.index
            if self.panels.group_blocks > 1:
                by = kernel.constant(self.panels.group_blocks)
                group = kernel.value(f"arith.divui {blocks.index}, {by} : index")
            columns = [kernel.times(vector, LANES) for vector in vectors]
            zeros = self._zero_points(panel, group, columns)
            sums = self._block(panel, blocks.index, rows, vectors, zeros)
            for v, column in enumerate(columns):
                scale = self._scale(panel, group, column)
                for r, _ in enumerate(rows):
                    at = r * len(vectors) + v
                    factor = scale
                    if self.flavour == "digits":
                        step = self._header(rows[r], blocks.index, DIGITS)
                        step = kernel.value(f"arith.bitcast {step} : i32 to f32")
                        step = kernel.splat(step, FLOATS)
                        factor = kernel.value(f"arith.mulf {scale}, {step} : {FLOATS}")
                    sums[at] = kernel.value(
                        f"vector.fma {sums[at]}, {factor}, {blocks.carried[at]} : {FLOATS}"
                    )
            blocks.yielded = sums
        for place, result in zip(places, blocks.results, strict=True):
            self.buffers["y"].store(result, place, FLOATS)

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
        chunks = panels.block // WORD // panels.chunk
        with kernel.loop(chunks, 1, [(start, kind) for start in starts]) as loop:
            sums = list(loop.carried)
            chunk = kernel.value(f"arith.addi {kernel.times(block, chunks)}, {loop.index} : index")
            codes = [self._codes(panel, chunk, vector) for vector in vectors]
            for word in range(panels.chunk):
                unpacked = [
                    self._unpacked(panel, chunk, vector, word, codes[v], zeros[v])
                    for v, vector in enumerate(vectors)
                ]
                if digits:
                    self._add_digits(sums, unpacked, (block, loop.index, word), rows)
                else:
                    self._add_floats(sums, unpacked, (block, loop.index, word), rows, zeros)
            loop.yielded = sums
        return self._as_floats(loop.results) if digits else loop.results

    def _starts(self, block: str, rows: Sequence[str], zeros: Sequence[str]) -> list[str]:
        """Minus the zero point times the sum of each digit, so that the products may be of codes
        as they are stored.
        """
        kernel, found = self.kernel, []
        for row in rows:
            totals = [self._header(row, block, i) for i in range(DIGITS)]
            for zero in zeros:
                for total in totals:
                    wide = kernel.splat(total, WORDS)
                    product = kernel.value(f"arith.muli {wide}, {zero} : {WORDS}")
                    none = kernel.constant(0, WORDS)
                    found.append(kernel.value(f"arith.subi {none}, {product} : {WORDS}"))
        return found

    def _header(self, row: str, block: str, index: int) -> str:
        """One of a block's last words: the sum of digit `index`, or the step."""
        last = block_words(self.panels.block) - SUMS
        return self.buffers["x"].load_scalar([row, block, self.kernel.constant(last + index)])

    def _codes(self, panel: str, chunk: str, vector: str) -> dict[str, list[str]]:
        """The bytes of a chunk, by plane; one vector of bytes for each unit."""
        kernel, zero, found = self.kernel, self.kernel.constant(0), {}
        for plane in self.panels.planes:
            units = self.panels.chunk // plane.lanes
            first = kernel.times(chunk, units)
            found[plane.name] = [
                self.buffers[plane.name].stream(
                    [panel, kernel.add(first, i), vector, zero], self.kept_bytes
                )
                for i in range(units)
            ]
        return found

    @property
    def kept_bytes(self) -> str:
        """The type of the stored bytes of a word vector."""
        return f"vector<{self.panels.kept}xi8>"

    def _unpacked(
        self,
        panel: str,
        chunk: str,
        vector: str,
        word: int,
        codes: dict[str, list[str]],
        zero: str,
    ) -> str:
        """The codes of one word vector, a byte each; the zero point where nothing is kept."""
        kernel, kept = self.kernel, self.kept_bytes
        parts = []
        for plane in self.panels.planes:
            part = codes[plane.name][word // plane.lanes]
            parts.append(self._field(part, plane.bits * (word % plane.lanes) - plane.shift, plane))
        whole = parts[0]
        for part in parts[1:]:
            whole = kernel.value(f"arith.ori {whole}, {part} : {kept}")
        if self.panels.format.pattern is None:
            return whole
        place = kernel.add(kernel.times(chunk, self.panels.chunk), word)
        bits = self.buffers["panel_bitmap"].stream([panel, place, vector], "vector<1xi64>")
        if self.flavour == "digits":
            return self._expanded(whole, bits, zero)
        return self._spread(whole, bits, zero)

    def _field(self, value: str, right: int, plane: Plane) -> str:
        """Bits of a plane, moved right by `right` (left if negative) and cut out of each byte."""
        kernel, kept = self.kernel, self.kept_bytes
        if plane.bits == 8:
            return value
        words = f"vector<{self.panels.kept // 4}xi32>"
        if right:
            moved = kernel.bitcast(value, kept, words)
            operation = "shrui" if right > 0 else "shli"
            by = kernel.constant(abs(right), words)
            moved = kernel.value(f"arith.{operation} {moved}, {by} : {words}")
            value = kernel.bitcast(moved, words, kept)
        mask = kernel.constant(((1 << plane.bits) - 1) << plane.shift, kept)
        return kernel.value(f"arith.andi {value}, {mask} : {kept}")

    def _expanded(self, values: str, bits: str, zero: str) -> str:
        """Stored bytes in their places by the bitmap: one AVX-512 VBMI2 instruction."""
        kernel, kept = self.kernel, self.panels.kept
        places = ", ".join(str(i if i < kept else -1) for i in range(64))
        wide = kernel.value(
            f"vector.shuffle {values}, {values} [{places}] : {self.kept_bytes}, {self.kept_bytes}"
        )
        mask = kernel.bitcast(bits, "vector<1xi64>", "vector<64xi1>")
        # The zero point in every byte of its lane: what a masked weight decodes to zero from.
        spread = kernel.value(f"arith.muli {zero}, {kernel.constant(0x01010101, WORDS)} : {WORDS}")
        spread = kernel.bitcast(spread, WORDS, BYTES)
        return kernel.value(
            f'llvm.call_intrinsic "llvm.x86.avx512.mask.expand.v64i8"({wide}, {spread}, {mask})'
            f" : ({BYTES}, {BYTES}, vector<64xi1>) -> {BYTES}"
        )

    def _spread(self, values: str, bits: str, zero: str) -> str:
        """Stored bytes in their places by the bitmap, in plain vector operations.

        A lane keeps as many bytes as every other, so its j-th byte is at `j` of the lane's own;
        which of its four places it goes to is how many bits stand below that place.
        """
        kernel, count = self.kernel, self.panels.kept // LANES
        own = []
        for j in range(count):
            places = ", ".join(str(lane * count + j) for lane in range(LANES))
            part = kernel.value(
                f"vector.shuffle {values}, {values} [{places}] : "
                f"{self.kept_bytes}, {self.kept_bytes}"
            )
            own.append(kernel.value(f"arith.extui {part} : vector<16xi8> to {WORDS}"))
        nibbles = kernel.bitcast(bits, "vector<1xi64>", "vector<16xi4>")
        nibbles = kernel.value(f"arith.extui {nibbles} : vector<16xi4> to {WORDS}")
        one, none = kernel.constant(1, WORDS), kernel.constant(0, WORDS)
        seen, whole = none, none
        for place in range(WORD):
            by = kernel.constant(place, WORDS)
            bit = kernel.value(f"arith.shrui {nibbles}, {by} : {WORDS}")
            bit = kernel.value(f"arith.andi {bit}, {one} : {WORDS}")
            taken = own[0]
            for j in range(1, count):
                equal = kernel.value(
                    f"arith.cmpi eq, {seen}, {kernel.constant(j, WORDS)} : {WORDS}"
                )
                taken = self._select(equal, own[j], taken)
            here = kernel.value(f"arith.cmpi eq, {bit}, {one} : {WORDS}")
            taken = self._select(here, taken, zero)
            taken = kernel.value(
                f"arith.shli {taken}, {kernel.constant(8 * place, WORDS)} : {WORDS}"
            )
            whole = kernel.value(f"arith.ori {whole}, {taken} : {WORDS}")
            seen = kernel.value(f"arith.addi {seen}, {bit} : {WORDS}")
        return kernel.bitcast(whole, WORDS, BYTES)

    def _select(self, condition: str, yes: str, no: str) -> str:
        return self.kernel.value(
            f"arith.select {condition}, {yes}, {no} : vector<{LANES}xi1>, {WORDS}"
        )

    def _add_digits(
        self, sums: list[str], codes: Sequence[str], at: tuple[str, str, int], rows: Sequence[str]
    ) -> None:
        """Add one word vector's products with every digit of every row."""
        kernel, (block, chunk, word) = self.kernel, at
        first = kernel.times(chunk, self.panels.chunk // WORD * WORD * DIGITS)
        offset = word // WORD * WORD * DIGITS + word % WORD
        for r, row in enumerate(rows):
            for i in range(DIGITS):
                place = kernel.add(first, offset + WORD * i)
                x = kernel.splat(self.buffers["x"].load_scalar([row, block, place]), WORDS)
                x = kernel.bitcast(x, WORDS, BYTES)
                for v, code in enumerate(codes):
                    n = (r * len(codes) + v) * DIGITS + i
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
        """Each three digits' sums as one float."""
        kernel, found = self.kernel, []
        for first in range(0, len(sums), DIGITS):
            parts = [
                kernel.value(f"arith.sitofp {sums[first + i]} : {WORDS} to {FLOATS}")
                for i in range(DIGITS)
            ]
            whole = parts[0]
            for i in range(1, DIGITS):
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
        element = MLIR_TYPES[self.panels.shapes()["panel_scale"][1]]
        return widened(self.kernel, self.buffers["panel_scale"], [panel, group, column], element)


def widened(kernel: Kernel, buffer: Buffer, at: Sequence[str], element: str) -> str:
    """A vector of floats of any type, as float32."""
    narrow = buffer.stream(at, f"vector<{LANES}x{element}>")
    if element == "f32":
        return narrow
    return kernel.value(f"arith.extf {narrow} : vector<{LANES}x{element}> to {FLOATS}")


def values_product(panels: Panels, rows: int, stride: int, start: bool, name: str) -> Kernel:
    """`x [rows, stride], values[, y0] -> [rows, padded out]`: x's first `in` columns times floats.

    start: whether y0 is there to be added to.
    """
    kernel = Kernel(name)
    (shape, dtype), outputs = panels.shapes()["panel_values"], panels.panels * panels.rows
    x, element = kernel.binding((rows, stride), "f32"), MLIR_TYPES[dtype]
    weight = kernel.binding(shape, element)
    added = kernel.binding((rows, outputs), "f32") if start else None
    y = kernel.binding((rows, outputs), "f32")
    panel = kernel.workgroup(0)
    base = kernel.times(panel, panels.rows)
    for tile in tiles(rows, panels.vectors, 1, 16):
        with kernel.loop((tile.stop - tile.start) // tile.rows) as outer:
            first = kernel.add(kernel.times(outer.index, tile.rows), tile.start)
            here = [kernel.add(first, i) for i in range(tile.rows)]
            with kernel.loop(panels.vectors, tile.vectors) as inner:
                columns = [
                    kernel.times(kernel.add(inner.index, i), LANES) for i in range(tile.vectors)
                ]
                places = [
                    [row, kernel.value(f"arith.addi {base}, {column} : index")]
                    for row in here
                    for column in columns
                ]
                none = kernel.constant("0.0", FLOATS)
                starts = [added.load(at, FLOATS) if added else none for at in places]
                with kernel.loop(shape[1], 1, [(at, FLOATS) for at in starts]) as loop:
                    values = [
                        widened(kernel, weight, [panel, loop.index, column], element)
                        for column in columns
                    ]
                    sums = list(loop.carried)
                    for r, row in enumerate(here):
                        one = kernel.splat(x.load_scalar([row, loop.index]), FLOATS)
                        for v, value in enumerate(values):
                            n = r * len(values) + v
                            sums[n] = kernel.value(
                                f"vector.fma {value}, {one}, {sums[n]} : {FLOATS}"
                            )
                    loop.yielded = sums
                for at, result in zip(places, loop.results, strict=True):
                    y.store(result, at, FLOATS)
    return kernel
