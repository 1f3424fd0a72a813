"""Attention of many tokens over a cache of keys and values, tile by tile (FlashAttention's order).

A tile is 32 queries of one head, a lane each, so that softmax runs over keys without ever crossing
lanes.  Keys come in blocks; what a block adds is weighted with the largest score so far, and what
earlier blocks added is scaled down when a larger one comes (Dao et al., 2022, Algorithm 1).  Keys
behind the tile's last query are never looked at.
"""

from collections.abc import Callable, Sequence
from math import prod

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.cpu.attention import NEVER, rotated
from trinity.lowering.kernels.cpu.caches import Cache, CodeCache, FloatCache, cache_of
from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, WORDS, Buffer, Kernel
from trinity.lowering.kernels.cpu.panels import aligned
from trinity.lowering.kernels.cpu.phases import LINE, Part, Phases, phased_function
from trinity.lowering.kernels.decoder_parts import AttentionFormat

KEYS = 64  # of a block
OUTPUTS = 4  # rows of the output that are added to at once, at most
BITS = f"vector<{LANES}xi1>"


def attention_refusal(attention: AttentionFormat) -> str | None:
    """Why an attention has no kernel, or None."""
    if attention.heads.width % (2 * LANES):
        return f"a head is not a multiple of {2 * LANES} wide"
    if attention.tokens % LANES or attention.heads.cache_length % KEYS:
        return f"tokens are not a multiple of {LANES}, or the cache of {KEYS} positions"
    return None


def attention_kernels(attention: AttentionFormat, instructions: Instructions) -> KernelCode:
    """The private function `(q, k, v, cos, sin, position, keys, values) -> out, keys, values`.

    q, k, v: not rotated yet; the caches are written in place
    """
    return _Writer(attention, instructions).written()


class _Writer:
    """Writes the kernel of one attention."""

    def __init__(self, attention: AttentionFormat, instructions: Instructions) -> None:
        self.attention, self.sizes = attention, attention.heads
        self.instructions, self.tokens = instructions, attention.tokens
        self.tile = 2 * LANES if self.tokens % (2 * LANES) == 0 else LANES  # its queries
        sums = instructions.registers // 2  # half of the registers; all are powers of two
        # Keys whose scores, and rows of the output whose sums, are computed at once.
        self.together = sums // (self.tile // LANES)
        parts = attention.heads.width // LANES
        self.rows = max(n for n in (1, 2, OUTPUTS) if n == 1 or n * parts <= sums)
        self.tiles = self.tokens // self.tile  # of a head
        self.kernel = Kernel(f"{attention.function}_kernel")
        shapes = attention.activations()
        self.q, self.k, self.v, self.cos, self.sin = (
            self.kernel.binding(shapes[name][0][1:], "f32")
            for name in ("q", "k", "v", "cos", "sin")
        )
        position = self.kernel.binding(shapes["position"][0], "i64")
        self.keys, self.values = (
            cache_of(self.kernel, self.kernel.argument(), self.sizes) for _ in ("keys", "values")
        )
        self.out = self.kernel.output(shapes["q"][0][1:], "f32")
        self._scratch, self._end = self.kernel.output_argument(), 0
        count = self.sizes.heads * self.tiles
        # Queries by tile, a lane each; scores of a block; a number of every lane.
        self.turned = self.scratch((count, self.sizes.width, self.tile))
        self.scores = self.scratch((count, KEYS, self.tile))
        self.lanes = self.scratch((count, self.tile))
        # A block's keys or values, where a cache holds codes.
        self.opened = None
        if isinstance(self.keys, CodeCache):
            self.opened = self.scratch((count, KEYS, self.sizes.width))
        self.start = self.kernel.value(
            f"arith.index_cast {position.load_scalar([self.kernel.constant(0)])} : i64 to index"
        )
        order = list(range(LANES))
        self.iota = self.kernel.value(f"arith.constant dense<{order}> : {WORDS}")

    def scratch(self, shape: tuple[int, ...]) -> Buffer:
        """New memory for floats."""
        start = self._end
        self._end += aligned(prod(shape) * 4)
        return self.kernel.region(self._scratch, start, shape, "f32")

    def written(self) -> KernelCode:
        """The function and its executable."""
        kernel, sizes = self.kernel, self.sizes
        groups = self.tokens // LANES
        phases: list[Sequence[Part]] = [
            [(sizes.kv_heads * groups, self.cached), (sizes.heads * groups, self.turn)],
            [(sizes.heads * self.tiles, self.attend)],
        ]
        counters = kernel.binding((len(phases), 2, LINE), "i32")
        writer = Phases(kernel, counters, len(phases), self.instructions)
        with kernel.when(writer.unfinished(sizes.heads * self.tiles)):
            for parts in phases:
                writer.write(parts)
        attention, shapes = self.attention, self.attention.activations()
        function = phased_function(
            attention.function, kernel, shapes, [*shapes, "counters"], len(phases), self._end
        )
        return KernelCode(attention.function, function, ((kernel.name, kernel.text()),))

    def cached(self, part: str) -> None:
        """Rotate 16 keys of a head, and write them and their values into the caches."""
        kernel, width = self.kernel, self.sizes.width
        head, first = self.split(part, self.tokens // LANES, LANES)
        column = kernel.times(head, width)
        with kernel.loop(LANES) as loop:
            row = kernel.add(first, loop.index)
            key = self.rotated(self.k, row, column)
            place = kernel.add(self.start, row)
            columns = [kernel.add(column, c) for c in range(0, width, LANES)]
            value = [self.v.load([row, c], FLOATS) for c in columns]
            self.keys.store(self.keys.row(key), head, place)
            self.values.store(self.values.row(value), head, place)

    def turn(self, part: str) -> None:
        """Rotate and scale 16 queries of a head, and turn them so that each is a lane."""
        kernel, sizes = self.kernel, self.sizes
        head, first = self.split(part, self.tokens // LANES, LANES)
        column = kernel.times(head, sizes.width)
        scaling = kernel.constant(sizes.scaling, FLOATS)
        rows = [self.rotated(self.q, kernel.add(first, i), column) for i in range(LANES)]
        by = kernel.constant(self.tile)
        tile = kernel.value(f"arith.divui {first}, {by} : index")
        tile = kernel.value(f"arith.addi {kernel.times(head, self.tiles)}, {tile} : index")
        lane = kernel.value(f"arith.remui {first}, {by} : index")
        for i in range(sizes.width // LANES):
            scaled = [kernel.value(f"arith.mulf {row[i]}, {scaling} : {FLOATS}") for row in rows]
            for d, turned in enumerate(self.transposed(scaled)):
                place = [tile, kernel.constant(LANES * i + d), lane]
                self.turned.store(turned, place, FLOATS)

    def attend(self, tile: str) -> None:
        """One tile of queries."""
        kernel, sizes, vectors = self.kernel, self.sizes, self.tile // LANES
        head, first = self.split(tile, self.tiles, self.tile)
        shared = kernel.constant(sizes.heads // sizes.kv_heads)
        kv_head = kernel.value(f"arith.divui {head}, {shared} : index")
        column = kernel.times(head, sizes.width)
        place = kernel.value(f"arith.addi {self.start}, {first} : index")
        positions = [
            kernel.value(
                f"arith.addi {self.words(kernel.add(place, LANES * v))}, {self.iota} : {WORDS}"
            )
            for v in range(vectors)
        ]
        none, never = kernel.constant("0.0", FLOATS), kernel.constant(NEVER, FLOATS)
        with kernel.loop(self.tile) as loop:
            for at in self.outputs(kernel.add(first, loop.index), column):
                self.out.store(none, at, FLOATS)
        carried = [(start, FLOATS) for start in (never, none) for _ in range(vectors)]
        stop = kernel.add(place, self.tile)
        with kernel.loop(stop, KEYS, carried, self.lowest(place)) as loop:
            largest, total = loop.carried[:vectors], loop.carried[vectors:]
            found = self.score(tile, (kv_head, loop.index), positions)
            new = [
                kernel.value(f"arith.maximumf {a}, {b} : {FLOATS}")
                for a, b in zip(largest, found, strict=True)
            ]
            total = self.weigh(tile, largest, new, total)
            self.mix(tile, (kv_head, loop.index), first, column)
            loop.yielded = [*new, *total]
        one = kernel.constant("1.0", FLOATS)
        for v, total_of in enumerate(loop.results[vectors:]):
            share = kernel.value(f"arith.divf {one}, {total_of} : {FLOATS}")
            self.lanes.store(share, [tile, kernel.constant(LANES * v)], FLOATS)
        with kernel.loop(self.tile) as rows:
            share = kernel.splat(self.lanes.load_scalar([tile, rows.index]), FLOATS)
            for at in self.outputs(kernel.add(first, rows.index), column):
                value = kernel.value(f"arith.mulf {self.out.load(at, FLOATS)}, {share} : {FLOATS}")
                self.out.store(value, at, FLOATS)

    def lowest(self, place: str) -> str:
        """First key of the first block that a tile whose first query is at `place` sees."""
        kernel, window = self.kernel, self.sizes.window
        if window is None or window >= self.sizes.cache_length:
            return kernel.constant(0)
        zero, by = kernel.constant(0), kernel.constant(KEYS)
        past = kernel.value(f"arith.subi {place}, {kernel.constant(window - 1)} : index")
        past = kernel.value(f"arith.maxsi {past}, {zero} : index")
        return kernel.times(kernel.value(f"arith.divui {past}, {by} : index"), KEYS)

    def score(self, tile: str, block: tuple[str, str], positions: Sequence[str]) -> list[str]:
        """Scores of a block of keys.  block: head and first key   -> the largest, lane by lane"""
        kernel, (_, first), vectors = self.kernel, block, len(positions)
        buffer, place = self.floats_of(self.keys, tile, block)
        none, never = kernel.constant("0.0", FLOATS), kernel.constant(NEVER, FLOATS)
        with kernel.loop(KEYS, self.together, [(never, FLOATS)] * vectors) as some:
            own = [kernel.add(some.index, i) for i in range(self.together)]
            keys = [kernel.value(f"arith.addi {first}, {i} : index") for i in own]
            starts = [(none, FLOATS)] * (self.together * vectors)
            with kernel.loop(self.sizes.width, 1, starts) as loop:
                queries = [
                    self.turned.load([tile, loop.index, kernel.constant(LANES * v)], FLOATS)
                    for v in range(vectors)
                ]
                for i, at in enumerate(own):
                    number = buffer.load_scalar([*place(at), loop.index])
                    number = kernel.splat(number, FLOATS)
                    for v, query in enumerate(queries):
                        before = loop.carried[i * vectors + v]
                        loop.yielded.append(
                            kernel.value(f"vector.fma {number}, {query}, {before} : {FLOATS}")
                        )
            largest = list(some.carried)
            for i, key in enumerate(keys):
                for v, position in enumerate(positions):
                    seen = self.visible(position, self.words(key))
                    score = kernel.value(
                        f"arith.select {seen}, {loop.results[i * vectors + v]}, {never} "
                        f": {BITS}, {FLOATS}"
                    )
                    self.scores.store(score, [tile, own[i], kernel.constant(LANES * v)], FLOATS)
                    largest[v] = kernel.value(f"arith.maximumf {largest[v]}, {score} : {FLOATS}")
            some.yielded = largest
        return some.results

    def visible(self, position: str, key: str) -> str:
        """Whether each lane's query sees a key.  -> vector of i1"""
        kernel, window = self.kernel, self.sizes.window
        seen = kernel.value(f"arith.cmpi sge, {position}, {key} : {WORDS}")
        if window is None or window >= self.sizes.cache_length:
            return seen
        distance = kernel.value(f"arith.subi {position}, {key} : {WORDS}")
        near = kernel.value(
            f"arith.cmpi slt, {distance}, {kernel.constant(window, WORDS)} : {WORDS}"
        )
        return kernel.value(f"arith.andi {seen}, {near} : {BITS}")

    def weigh(
        self, tile: str, largest: Sequence[str], new: Sequence[str], total: Sequence[str]
    ) -> list[str]:
        """Scores become weights against the new largest; what earlier sums are scaled with stays in
        `lanes`.  -> the weights' sum so far, lane by lane
        """
        kernel, starts = self.kernel, []
        for v, (old, now, sum_) in enumerate(zip(largest, new, total, strict=True)):
            down = kernel.value(f"arith.subf {old}, {now} : {FLOATS}")
            down = kernel.value(f"math.exp {down} : {FLOATS}")
            self.lanes.store(down, [tile, kernel.constant(LANES * v)], FLOATS)
            starts.append((kernel.value(f"arith.mulf {sum_}, {down} : {FLOATS}"), FLOATS))
        with kernel.loop(KEYS, 1, starts) as loop:
            for v, now in enumerate(new):
                at = [tile, loop.index, kernel.constant(LANES * v)]
                weight = kernel.value(
                    f"arith.subf {self.scores.load(at, FLOATS)}, {now} : {FLOATS}"
                )
                weight = kernel.value(f"math.exp {weight} : {FLOATS}")
                self.scores.store(weight, at, FLOATS)
                loop.yielded.append(
                    kernel.value(f"arith.addf {loop.carried[v]}, {weight} : {FLOATS}")
                )
        return loop.results

    def mix(self, tile: str, block: tuple[str, str], first: str, column: str) -> None:
        """Scale the outputs down, and add a block's weighted values."""
        kernel, parts = self.kernel, self.sizes.width // LANES
        buffer, place = self.floats_of(self.values, tile, block)
        with kernel.loop(self.tile, self.rows) as some:
            own = [kernel.add(some.index, i) for i in range(self.rows)]
            places, starts = [], []
            for row in own:
                down = kernel.splat(self.lanes.load_scalar([tile, row]), FLOATS)
                whole = kernel.value(f"arith.addi {first}, {row} : index")
                for at in self.outputs(whole, column):
                    places.append(at)
                    before = self.out.load(at, FLOATS)
                    before = kernel.value(f"arith.mulf {before}, {down} : {FLOATS}")
                    starts.append((before, FLOATS))
            with kernel.loop(KEYS, 1, starts) as loop:
                at = place(loop.index)
                values = [
                    buffer.load([*at, kernel.constant(LANES * i)], FLOATS) for i in range(parts)
                ]
                for r, row in enumerate(own):
                    weight = self.scores.load_scalar([tile, loop.index, row])
                    weight = kernel.splat(weight, FLOATS)
                    for i, value in enumerate(values):
                        before = loop.carried[r * parts + i]
                        loop.yielded.append(
                            kernel.value(f"vector.fma {value}, {weight}, {before} : {FLOATS}")
                        )
            for at, value in zip(places, loop.results, strict=True):
                self.out.store(value, at, FLOATS)

    def floats_of(
        self, cache: Cache, tile: str, block: tuple[str, str]
    ) -> tuple[Buffer, Callable[[str], list[str]]]:
        """A block's keys or values as floats: where they are, and the place of each in it.

        block: head and first key.  Codes become floats in memory of the tile's own.
        """
        kernel, (head, first) = self.kernel, block
        if isinstance(cache, FloatCache):
            return cache.buffer, lambda index: [
                kernel.constant(0),
                head,
                kernel.value(f"arith.addi {first}, {index} : index"),
            ]
        opened = self.opened
        assert opened is not None
        with kernel.loop(KEYS) as loop:
            position = kernel.value(f"arith.addi {first}, {loop.index} : index")
            for i, part in enumerate(cache.numbers(head, position)):
                opened.store(part, [tile, loop.index, kernel.constant(LANES * i)], FLOATS)
        return opened, lambda index: [tile, index]

    def outputs(self, row: str, column: str) -> list[list[str]]:
        """Places of a head's vectors in a row of the output."""
        kernel = self.kernel
        return [[row, kernel.add(column, c)] for c in range(0, self.sizes.width, LANES)]

    def rotated(self, buffer: Buffer, row: str, column: str) -> list[str]:
        """A head's vectors of one token."""
        kernel, starts = self.kernel, range(0, self.sizes.width, LANES)
        parts = [buffer.load([row, kernel.add(column, c)], FLOATS) for c in starts]
        cos, sin = (
            [angles.load([row, kernel.constant(c)], FLOATS) for c in starts]
            for angles in (self.cos, self.sin)
        )
        return rotated(kernel, parts, cos, sin)

    def split(self, index: str, count: int, size: int) -> tuple[str, str]:
        """Head and first token of a part, of which a head has `count` of `size` tokens."""
        kernel, by = self.kernel, self.kernel.constant(count)
        head = kernel.value(f"arith.divui {index}, {by} : index")
        rest = kernel.value(f"arith.remui {index}, {by} : index")
        return head, kernel.times(rest, size)

    def words(self, index: str) -> str:
        """An index in every lane."""
        word = self.kernel.value(f"arith.index_cast {index} : index to i32")
        return self.kernel.splat(word, WORDS)

    def transposed(self, rows: Sequence[str]) -> list[str]:
        """16 vectors as the columns of 16 others, by exchanging halves, quarters and so on."""
        kernel, found, step = self.kernel, list(rows), LANES // 2
        while step:
            low = [i if not i & step else i - step + LANES for i in range(LANES)]
            high = [i + step if not i & step else i + LANES for i in range(LANES)]
            for i in range(LANES):
                if not i & step:
                    a, b = found[i], found[i + step]
                    for at, order in ((i, low), (i + step, high)):
                        found[at] = kernel.value(
                            f"vector.shuffle {a}, {b} {order} : {FLOATS}, {FLOATS}"
                        )
            step //= 2
        return found
