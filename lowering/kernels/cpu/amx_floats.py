"""Products of many rows with floats on matrix units, as accurate as float32.

The units multiply bfloat16, of 8 bits, and add in float32.  A float32 is the sum of three of those,
exactly but for its last bit, a float16 of two, so activations and weights are cut into *pieces* and
the products of pieces added up, but for those that are smaller than the rounding of a float32: six
of nine for float32, five of six for float16, three for bfloat16.  A unit makes 512 products of
bfloat16 a cycle, vector instructions 32 of float32.

A workgroup takes 32 outputs and up to 128 rows.  Weights are cut for 64 inputs at a time, once for
all rows of the workgroup, while those of the 64 before are multiplied; two tiles of rows times two
of outputs use each piece that is loaded for two products.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from trinity.lowering.kernels.cpu.amx_registers import DEEPEST, TALLEST, MatrixUnit
from trinity.lowering.kernels.cpu.floats import floats_of
from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, WORDS, Buffer, Kernel, write_all
from trinity.lowering.kernels.cpu.panel_geometry import WORD
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored

# Of a weight; of a level times its scale three.
PIECES = {"float32": 3, "float16": 2, "bfloat16": 1, None: 3}
STEP = 32  # inputs of a tile
STEPS = 2  # tiles of inputs, a block, whose weights are cut at once
MOST_TILES = 8  # of rows, of one workgroup
CACHE = 1 << 21  # bytes of a workgroup's activations that the second-level cache should hold
LEFT, RIGHT = 4, 6  # tile registers, behind those of sums
TILE = TALLEST * DEEPEST  # bytes of a whole tile


@dataclass(frozen=True)
class FloatTiling:
    """How M rows and the inputs of a weight are cut into tiles, and where pieces stand.

    Of activations: `[tile, step, piece, row of the tile, 32] bfloat16`, as words of two.
    """

    panels: Panels
    rows: int

    @property
    def parts(self) -> int:
        """Workgroups that share the rows of a panel."""
        tile_bytes = self.steps * 3 * TILE
        most = max(4, min(MOST_TILES, CACHE // tile_bytes))
        return -(-self.rows // (most * TALLEST))

    @property
    def own(self) -> int:
        """Tiles of a workgroup, a power of two."""
        return 1 << (-(-self.rows // (self.parts * TALLEST)) - 1).bit_length()

    @property
    def height(self) -> int:
        """Rows of a tile; the last ones may not be there."""
        return -(-self.rows // (self.parts * self.own))

    @property
    def steps(self) -> int:
        """Tiles of inputs."""
        return -(-self.panels.format.shape[1] // STEP)

    @property
    def width(self) -> int:
        """Inputs, padded to whole tiles."""
        return self.steps * STEP

    @property
    def vectors(self) -> int:
        """Vectors of outputs of a workgroup."""
        return min(2, self.panels.vectors)

    @property
    def block_words(self) -> int:
        """Words of four inputs of a block."""
        return STEPS * STEP // WORD

    @property
    def words(self) -> int:
        """Those of the next block that are cut in a step of one or two tiles of rows."""
        return self.block_words // (STEPS * max(1, self.own // 2))

    @property
    def step_bytes(self) -> int:
        """Of the pieces of a tile of activations."""
        return 3 * self.height * DEEPEST

    @property
    def shape(self) -> tuple[int, int]:
        """Of prepared activations, i32."""
        return self.parts * self.own, self.steps * self.step_bytes // 4

    @property
    def grid(self) -> tuple[int, int]:
        """Workgroups: of outputs, and of rows."""
        return self.panels.panels * self.panels.vectors // self.vectors, self.parts


def prepare_pieces(tiling: FloatTiling, stride: int) -> Kernel:
    """`[rows, stride] f32 -> tiling.shape i32`: the first columns in pieces.  A workgroup a row.

    Columns behind the weight's inputs are zeros, which is why any weight may meet them.
    """
    size = f"{tiling.rows}x{tiling.steps}x{stride}"
    kernel = Kernel(f"prepare_pieces_{size}")
    x = kernel.binding((tiling.rows, stride), "f32")
    out = kernel.output(tiling.shape, "i32")
    row, height = kernel.workgroup(0), kernel.constant(tiling.height)
    tile = kernel.value(f"arith.divui {row}, {height} : index")
    inside = kernel.value(f"arith.remui {row}, {height} : index")
    by, narrow = kernel.constant(16, WORDS), f"vector<{LANES}xi16>"
    with kernel.loop(tiling.steps) as loop:
        first = kernel.times(loop.index, tiling.step_bytes // 4)
        first = kernel.add(first, kernel.times(inside, DEEPEST // 4))
        for half in range(2):
            column = kernel.add(kernel.times(loop.index, STEP), half * LANES)
            rest = x.load([row, column], FLOATS)
            for piece in range(3):
                near, _, rest = _cut(kernel, rest)
                part = kernel.value(f"arith.shrui {near}, {by} : {WORDS}")
                part = kernel.value(f"arith.trunci {part} : {WORDS} to {narrow}")
                at = kernel.add(first, (piece * tiling.height * DEEPEST + half * 2 * LANES) // 4)
                words = kernel.bitcast(part, narrow, "vector<8xi32>")
                out.store(words, [tile, at], "vector<8xi32>")
    return kernel


def _cut(kernel: Kernel, value: str) -> tuple[str, str, str]:
    """The nearest bfloat16, in the upper half of its word: with anything in the lower half, and
    with nothing; and what is left of the value.
    """
    bits = kernel.bitcast(value, FLOATS, WORDS)
    near = kernel.value(f"arith.addi {bits}, {kernel.constant(0x8000, WORDS)} : {WORDS}")
    piece = kernel.value(f"arith.andi {near}, {kernel.constant(-0x10000, WORDS)} : {WORDS}")
    wide = kernel.bitcast(piece, WORDS, FLOATS)
    return near, piece, kernel.value(f"arith.subf {value}, {wide} : {FLOATS}")


class FloatTiles:
    """One product."""

    def __init__(
        self,
        kernel: Kernel,
        stored: Stored,
        x: Buffer,
        tiling: FloatTiling,
        instructions: Instructions,
    ) -> None:
        """x: as `tiling.shape` says"""
        self.kernel, self.panels, self.x, self.tiling = kernel, stored.panels, x, tiling
        self.unit = MatrixUnit(kernel)
        self.pieces = PIECES[stored.panels.format.dtype]
        self.inputs = floats_of(kernel, stored, instructions)
        self.stride = kernel.constant(tiling.vectors * DEEPEST, "i64")
        halves = (2 * tiling.vectors, self.pieces, STEPS * STEP // 2, LANES)
        self.weights = kernel.scratch(halves, "i32")
        share = tiling.own * tiling.height
        self.totals = kernel.scratch((share, tiling.vectors * LANES), "f32")
        outputs, part = kernel.workgroup(0), kernel.workgroup(1)
        self.first_tile = kernel.times(part, tiling.own)
        self.first_row = kernel.times(part, share)
        self.first_output = kernel.times(outputs, tiling.vectors * LANES)
        each = kernel.constant(self.panels.vectors // tiling.vectors)
        self.panel = kernel.value(f"arith.divui {outputs}, {each} : index")
        inside = kernel.value(f"arith.remui {outputs}, {each} : index")
        inside = kernel.times(inside, tiling.vectors)
        self.vectors = [kernel.add(inside, v) for v in range(tiling.vectors)]

    def write(self, y0: Buffer | None, y: Buffer) -> None:
        """Some outputs of the workgroup's rows: y becomes the product, and y0, if there is one.

        y0, y: `[rows, padded out]`
        """
        kernel, tiling = self.kernel, self.tiling
        rows, pairs = (tiling.height, DEEPEST), (TALLEST, DEEPEST)
        self.unit.configure([rows] * RIGHT + [pairs] * 2)
        count = kernel.value(f"arith.subi {kernel.constant(tiling.rows)}, {self.first_row} : index")
        share = kernel.constant(tiling.own * tiling.height)
        count = kernel.value(f"arith.minsi {count}, {share} : index")
        for here, place in self._rows(count):
            start = y0.load(place, FLOATS) if y0 else kernel.constant("0.0", FLOATS)
            self.totals.store(start, here, FLOATS)
        positions = self.inputs.starts(self.panel, self.vectors)
        words, zero = range(tiling.block_words), kernel.constant(0)
        write_all(self._cut_words([kernel.constant(n) for n in words], (zero, zero), positions))
        with kernel.loop(tiling.steps, STEPS, [(at, "index") for at in positions]) as loop:
            loop.yielded = self._block(loop.index, list(loop.carried))
        for here, place in self._rows(count):
            y.store(self.totals.load(here, FLOATS), place, FLOATS)
        self.unit.release()

    def _rows(self, count: str) -> Iterator[tuple[list[str], list[str]]]:
        """Inside a loop over the workgroup's rows: places in the totals, and in y."""
        kernel = self.kernel
        with kernel.loop(count) as row:
            for v in range(self.tiling.vectors):
                column = kernel.constant(v * LANES)
                at = kernel.add(self.first_output, column)
                yield [row.index, column], [kernel.add(self.first_row, row.index), at]

    def _block(self, first: str, positions: list[str]) -> list[str]:
        """Add the products of the steps from `first` on, and cut the weights of the next ones.

        Vector instructions cut while matrix units multiply.  -> positions, moved on
        """
        kernel, tiling = self.kernel, self.tiling
        left = kernel.value(f"arith.subi {kernel.constant(tiling.steps)}, {first} : index")
        steps = kernel.value(f"arith.minui {left}, {kernel.constant(STEPS)} : index")
        number = kernel.value(f"arith.divui {first}, {kernel.constant(STEPS)} : index")
        now = kernel.value(f"arith.remui {number}, {kernel.constant(2)} : index")
        later = kernel.value(f"arith.subi {kernel.constant(1)}, {now} : index")
        pair = min(2, tiling.own)
        carried = [(at, "index") for at in positions]
        with kernel.loop(tiling.own // pair, 1, carried) as tiles:
            own = [kernel.add(kernel.times(tiles.index, pair), t) for t in range(pair)]
            sums = self._sums(own)
            for register, place in sums:
                self.unit.load(register, self.totals, place, self.stride)
            with kernel.loop(steps, 1, [(at, "index") for at in tiles.carried]) as loop:
                share = kernel.add(kernel.times(tiles.index, STEPS), loop.index)
                word = kernel.times(share, tiling.words)
                words = [kernel.add(word, n) for n in range(tiling.words)]
                next_first = kernel.times(kernel.add(first, STEPS), STEP // WORD)
                moved = list(loop.carried)
                cut = self._cut_words(words, (later, next_first), moved)
                for _ in self._multiply(first, loop.index, own, now):
                    next(cut, None)
                write_all(cut)
                loop.yielded = moved
            for register, place in sums:
                self.unit.store(register, self.totals, place, self.stride)
            tiles.yielded = loop.results
        return tiles.results

    def _cut_words(
        self, words: list[str], where: tuple[str, str], positions: list[str]
    ) -> Iterator[None]:
        """Weights of words of four inputs in scratch memory, two bfloat16 a word.

        `[half, vector, piece, pair of inputs, output]`; the iterator takes a step for each pair and
        vector.
        words: of a block   where: the half, and the block's first word   positions: moved on
        """
        kernel, (half, first) = self.kernel, where
        for word in words:
            found = self.inputs.word(self.panel, kernel.add(first, word), self.vectors, positions)
            for i in range(0, WORD, 2):
                pair = kernel.add(kernel.times(word, WORD // 2), i // 2)
                for v in range(len(self.vectors)):
                    place = kernel.add(kernel.times(half, len(self.vectors)), v)
                    self._cut_pair((found[i][v], found[i + 1][v]), place, pair)
                    yield

    def _cut_pair(self, values: tuple[str, str], vector: str, pair: str) -> None:
        """The pieces of two inputs' weights, as words of two bfloat16."""
        kernel, (low, high) = self.kernel, values
        by = kernel.constant(16, WORDS)
        for piece in range(self.pieces):
            near, _, low = _cut(kernel, low)
            _, upper, high = _cut(kernel, high)
            lower = kernel.value(f"arith.shrui {near}, {by} : {WORDS}")
            word = kernel.value(f"arith.ori {lower}, {upper} : {WORDS}")
            place = [vector, kernel.constant(piece), pair, kernel.constant(0)]
            self.weights.store(word, place, WORDS)

    def _sums(self, tiles: list[str]) -> list[tuple[int, str]]:
        """Tile registers of sums, and their places in the totals."""
        kernel, row_bytes = self.kernel, self.tiling.vectors * DEEPEST
        tops = [kernel.times(tile, self.tiling.height * row_bytes) for tile in tiles]
        return [
            (2 * t + v, kernel.add(top, v * DEEPEST))
            for t, top in enumerate(tops)
            for v in range(len(self.vectors))
        ]

    def _multiply(self, first: str, step: str, tiles: list[str], half: str) -> Iterator[None]:
        """Add the products of one step of a block to those of one or two tiles of rows; one step of
        the iterator for each pair of pieces.
        """
        kernel, unit, tiling = self.kernel, self.unit, self.tiling
        vectors, piece_bytes = range(len(self.vectors)), STEPS * TILE
        lefts = [self._left(tile, kernel.add(first, step)) for tile in tiles]
        right = kernel.times(half, len(vectors) * self.pieces * piece_bytes)
        right = kernel.add(right, kernel.times(step, TILE))
        for j in range(self.pieces):
            for v in vectors:
                offset = (v * self.pieces + j) * piece_bytes
                unit.load(RIGHT + v, self.weights, kernel.add(right, offset))
            for i in range(3 - j):
                for t, left in enumerate(lefts):
                    place = kernel.add(left, i * tiling.height * DEEPEST)
                    unit.load(LEFT + t, self.x, place)
                for t in range(len(tiles)):
                    for v in vectors:
                        unit.multiply("tdpbf16ps", 2 * t + v, LEFT + t, RIGHT + v)
                yield

    def _left(self, tile: str, step: str) -> str:
        """Where a tile of activations begins, a byte of x."""
        kernel, tiling = self.kernel, self.tiling
        tile = kernel.times(kernel.add(self.first_tile, tile), tiling.steps)
        return kernel.times(kernel.add(tile, step), tiling.step_bytes)
