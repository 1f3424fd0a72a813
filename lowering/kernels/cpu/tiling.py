"""Activations for matrix units: the digits of `digits.py`, in tiles."""

from dataclasses import dataclass

from trinity.lowering.kernels.cpu.amx_registers import DEEPEST, TALLEST
from trinity.lowering.kernels.cpu.digits import (
    Scaled,
    exact_step,
    in_bytes,
    larger,
    largest_of,
    rounded_step,
    split,
)
from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, WORDS, Buffer, Kernel
from trinity.lowering.kernels.cpu.panel_geometry import WORD
from trinity.lowering.kernels.cpu.panels import Panels

LINE = 16  # words of a cache line, where a tile should start
MOST_TILES = 4  # of one workgroup: their sums, 16 KiB, should stay in the first cache


@dataclass(frozen=True)
class Tiling:
    """How M rows and blocks of inputs are cut into tiles, and where prepared activations stand.

    Of every block: digits `[tile, digit, row of the tile, input] i8`, then for every row the step,
    and where codes stay unsigned the sum of each digit.
    """

    panels: Panels
    rows: int
    digits: int

    @property
    def signed(self) -> bool:
        """Whether codes less their zero points fit a byte."""
        integers = self.panels.integers
        return integers is not None and integers.fit_signed

    @property
    def parts(self) -> int:
        """Workgroups that share the rows of a panel."""
        return -(-self.rows // (MOST_TILES * TALLEST))

    @property
    def own(self) -> int:
        """Tiles of a workgroup."""
        return -(-self.rows // (self.parts * TALLEST))

    @property
    def tiles(self) -> int:
        """Tiles over the rows, of equal height; the last may hold rows that are not there."""
        return self.parts * self.own

    @property
    def height(self) -> int:
        """Rows of a tile."""
        return -(-self.rows // self.tiles)

    @property
    def depth(self) -> int:
        """Inputs of a tile: a block is cut into equal parts."""
        block = self.panels.block
        return max(n for n in range(WORD, DEEPEST + 1, WORD) if block % n == 0)

    @property
    def tile_bytes(self) -> int:
        """Of one digit of a tile's rows, all inputs of a block."""
        return self.height * self.panels.block

    @property
    def digit_words(self) -> int:
        """Words of a block's digits."""
        return self.tiles * self.digits * self.tile_bytes // WORD

    @property
    def block_words(self) -> int:
        """Words of a block, up to the end of a cache line."""
        kinds = 1 if self.signed else 1 + self.digits
        words = self.digit_words + kinds * self.tiles * self.height
        return -(-words // LINE) * LINE

    @property
    def shape(self) -> tuple[int, int]:
        """Of prepared activations, i32."""
        return (self.panels.blocks, self.block_words)

    def header(self, kernel: Kernel, row: str, kind: int) -> str:
        """The word where a row's step is, or from kind 1 on, the sum of a digit."""
        return kernel.add(row, self.digit_words + kind * self.tiles * self.height)


def prepare_tiles(instructions: Instructions, tiling: Tiling) -> Kernel:
    """`[rows, blocks, block] f32 -> tiling.shape i32`: digits, steps, sums.  A workgroup a row."""
    panels = tiling.panels
    shared = panels.rounded_blocks
    kind = f"rounded_{shared}" if shared else f"exact_{tiling.digits}"
    sums = "" if tiling.signed else "_sums"
    size = f"{tiling.rows}x{panels.blocks}x{panels.block}"
    kernel = Kernel(f"prepare_tiles_{kind}{sums}_{size}")
    x = kernel.binding((tiling.rows, panels.blocks, panels.block), "f32")
    out = kernel.output(tiling.shape, "i32")
    row, span = kernel.workgroup(0), shared or 1
    with kernel.loop(panels.blocks, span) as outer:
        largest = _largest(kernel, x, (row, outer.index), (span, panels.block))
        if shared:
            scaled, step = rounded_step(kernel, largest)
        else:
            scaled, step = exact_step(kernel, largest, tiling.digits)
        with kernel.loop(span) as inner:
            block = kernel.add(outer.index, inner.index)
            _write(kernel, instructions, tiling, (x, out), (row, block), scaled)
            word = kernel.value(f"arith.bitcast {step} : f32 to i32")
            out.store_scalar(word, [block, tiling.header(kernel, row, 0)])
    return kernel


def _largest(kernel: Kernel, x: Buffer, here: tuple[str, str], sizes: tuple[int, int]) -> str:
    """The largest magnitude of blocks of a row.  here: row, first block   sizes: blocks, block"""
    (row, first), (blocks, block) = here, sizes
    with kernel.loop(blocks, 1, [(kernel.constant(0, WORDS), WORDS)]) as outer:
        at = kernel.add(first, outer.index)
        with kernel.loop(block, LANES, [(outer.carried[0], WORDS)]) as loop:
            values = x.load([row, at, loop.index], FLOATS)
            loop.yielded = [larger(kernel, loop.carried[0], values)]
        outer.yielded = loop.results
    return largest_of(kernel, outer.results[0])


def _write(
    kernel: Kernel,
    instructions: Instructions,
    tiling: Tiling,
    buffers: tuple[Buffer, Buffer],
    here: tuple[str, str],
    scaled: Scaled,
) -> None:
    """The digits of one block of a row.  buffers: floats, words   here: row and block"""
    (x, out), (row, block) = buffers, here
    height = kernel.constant(tiling.height)
    tile = kernel.value(f"arith.divui {row}, {height} : index")
    inside = kernel.value(f"arith.remui {row}, {height} : index")
    words = tiling.panels.block // WORD
    start = kernel.add(
        kernel.times(tile, tiling.digits * tiling.height * words), kernel.times(inside, words)
    )
    zeros = [] if tiling.signed else [(kernel.constant(0, WORDS), WORDS)] * tiling.digits
    with kernel.loop(words, LANES // WORD, zeros) as loop:
        values = x.load([row, block, kernel.times(loop.index, WORD)], FLOATS)
        place = kernel.add(start, loop.index)
        for i, digit in enumerate(split(kernel, instructions, values, scaled, tiling.digits)):
            narrow = in_bytes(kernel, instructions, digit)
            at = kernel.add(place, i * tiling.height * words)
            out.store(narrow, [block, at], "vector<4xi32>")
            if zeros:
                total = kernel.value(f"arith.addi {loop.carried[i]}, {digit} : {WORDS}")
                loop.yielded.append(total)
    for i, total in enumerate(loop.results):
        whole = kernel.value(f"vector.reduction <add>, {total} : {WORDS} into i32")
        out.store_scalar(whole, [block, tiling.header(kernel, row, 1 + i)])
