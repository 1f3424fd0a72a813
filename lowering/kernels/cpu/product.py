"""Kernels for CPUs: sums of products with packed weights, as accurate as float32.

They run at the speed of bytes where M is small, and take every M: codes are unpacked once for a
tile of rows of the input.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, Buffer, Kernel
from trinity.lowering.kernels.cpu.product_terms import Term

NARROW = 8  # vectors: 16 rows of float16 took 1.9 times as long three by two as six by one (AVX2)
STEPS = 4  # of a tile, that a workgroup takes at most


@dataclass(frozen=True)
class Tile:
    """Rows of the input from `start` to `stop`, `rows` at a time with `vectors` of the panel."""

    start: int
    stop: int
    rows: int
    vectors: int

    @property
    def steps(self) -> int:
        """How often its rows fit."""
        return (self.stop - self.start) // self.rows


def tiles(rows: int, vectors: int, room: int) -> list[Tile]:
    """Tiles over the rows of the input, each of at most `room` vectors of outputs.

    Two vectors wide, so that an input is loaded once for both; one where there is little room, so
    that weights are widened for more rows at once.  What rows are left over take as many as there
    is room for.
    """
    wide = 2 if vectors % 2 == 0 and room > NARROW else 1
    tall = room // wide
    whole = rows // tall * tall
    found = [Tile(0, whole, tall, wide)] if whole else []
    if whole < rows:
        left = rows - whole
        wide = max(1, min(vectors, room // left))
        while vectors % wide:
            wide -= 1
        found.append(Tile(whole, rows, left, wide))
    return found


def shares(found: Sequence[Tile]) -> int:
    """Among how many workgroups the rows of the first tile are shared, four steps each or less.

    Narrow weights have fewer panels than a processor has cores.
    """
    steps = found[0].steps
    return steps // max(n for n in range(1, STEPS + 1) if steps % n == 0)


def product_grid(terms: Sequence[Term], rows: int) -> tuple[int, int]:
    """Workgroups of a product: panels, and shares of the rows."""
    return terms[0].panels.panels, shares(_tiles(terms, rows))


def write_product(
    kernel: Kernel,
    terms: Sequence[Term],
    rows: int,
    places: tuple[str, str | None],
    buffers: tuple[Buffer | None, Buffer],
) -> None:
    """`y [rows, padded out]`, one panel of it: the sum of the terms, and of y0 where there is one.

    places: numbers of the panel, and of the share of the rows, None where there is one share
    buffers: y0 and y, of equal shape
    """
    (panel, share), found = places, _tiles(terms, rows)
    if share is None:
        for tile in found:
            _write_tile(kernel, terms, tile, (panel, None), buffers)
        return
    steps = found[0].steps // shares(found)
    begin = kernel.times(share, steps * found[0].rows)
    shared = replace(found[0], stop=steps * found[0].rows)
    _write_tile(kernel, terms, shared, (panel, begin), buffers)
    for tile in found[1:]:
        first = kernel.value(f"arith.cmpi eq, {share}, {kernel.constant(0)} : index")
        with kernel.when(first):
            _write_tile(kernel, terms, tile, (panel, None), buffers)


def _write_tile(
    kernel: Kernel,
    terms: Sequence[Term],
    tile: Tile,
    places: tuple[str, str | None],
    buffers: tuple[Buffer | None, Buffer],
) -> None:
    """One tile's rows.  places: the panel, and how much further on the rows start"""
    (panel, begin), (y0, y), panels = places, buffers, terms[0].panels
    base = kernel.times(panel, panels.rows)
    none = kernel.constant("0.0", FLOATS)
    with kernel.loop(tile.steps) as outer:
        first = kernel.add(kernel.times(outer.index, tile.rows), begin or tile.start)
        here = [kernel.add(first, i) for i in range(tile.rows)]
        with kernel.loop(panels.vectors, tile.vectors) as inner:
            vectors = [kernel.add(inner.index, i) for i in range(tile.vectors)]
            at = [
                [row, kernel.value(f"arith.addi {base}, {kernel.times(vector, LANES)} : index")]
                for row in here
                for vector in vectors
            ]
            sums = [y0.load(place, FLOATS) if y0 else none for place in at]
            for term in terms:
                sums = term.added(panel, here, vectors, sums)
            for place, result in zip(at, sums, strict=True):
                y.store(result, place, FLOATS)


def _tiles(terms: Sequence[Term], rows: int) -> list[Tile]:
    return tiles(rows, terms[0].panels.vectors, min(term.room for term in terms))
