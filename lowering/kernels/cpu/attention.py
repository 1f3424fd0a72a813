"""Attention of one token over a cache of keys and values, a query head at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

from trinity.lowering.kernels.cpu.caches import BITS, Cache, CodeCache, lanes_before
from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, Buffer, Kernel
from trinity.lowering.kernels.decoder_parts import Heads

NEVER = -1e30  # a score that gets no weight


@dataclass(frozen=True)
class AttentionBuffers:
    """What the attention reads and writes, float32 but for the caches.

    q [1, heads width], k and v [1, kv_heads width]: of the new token, not rotated yet
    cos, sin: [1, width]   keys, values: written at the position
    scores: [heads, cache_length rounded up to vectors and one more]   out: [1, heads width]
    """

    q: Buffer
    k: Buffer
    v: Buffer
    cos: Buffer
    sin: Buffer
    keys: Cache
    values: Cache
    scores: Buffer
    out: Buffer


def score_room(cache_length: int) -> int:
    """Columns of `scores`."""
    return (cache_length // LANES + 1) * LANES


def write_head(
    kernel: Kernel, sizes: Heads, buffers: AttentionBuffers, position: str, head: str
) -> None:
    """One query head: rotate, write the cache, softmax(scaling q K^T) V.

    Its first head writes a key/value head into the cache.  Others do not read it from there: they
    rotate it once more, so that no head waits for another.
    position, head: indices
    """
    _Head(kernel, sizes, buffers, position, head).write()


def rotated(
    kernel: Kernel, parts: Sequence[str], cos: Sequence[str], sin: Sequence[str]
) -> list[str]:
    """Vectors of one head and token, their two halves turned by angles (RoPE)."""
    half, found = len(parts) // 2, []
    for i, part in enumerate(parts):
        own = kernel.value(f"arith.mulf {part}, {cos[i]} : {FLOATS}")
        other = parts[(i + half) % len(parts)]
        other = kernel.value(f"arith.mulf {other}, {sin[i]} : {FLOATS}")
        sign = "arith.subf" if i < half else "arith.addf"
        found.append(kernel.value(f"{sign} {own}, {other} : {FLOATS}"))
    return found


class _Head:
    """Writes the code of one head."""

    def __init__(
        self, kernel: Kernel, sizes: Heads, buffers: AttentionBuffers, position: str, head: str
    ) -> None:
        self.kernel, self.sizes, self.buffers = kernel, sizes, buffers
        self.position, self.head = position, head
        self.zero = kernel.constant(0)
        shared = kernel.constant(sizes.heads // sizes.kv_heads)
        self.kv_head = kernel.value(f"arith.divui {head}, {shared} : index")
        self.within = kernel.value(f"arith.remui {head}, {shared} : index")

    def write(self) -> None:
        """See `write_head`."""
        kernel, buffers = self.kernel, self.buffers
        scaling = kernel.constant(self.sizes.scaling, FLOATS)
        query = [self.times(part, scaling) for part in self.rotated(buffers.q, self.head)]
        key = buffers.keys.row(self.rotated(buffers.k, self.kv_head))
        value = buffers.values.row(self.parts(buffers.v, [self.zero], self.start(self.kv_head)))
        first = kernel.value(f"arith.cmpi eq, {self.within}, {self.zero} : index")
        with kernel.when(first):
            buffers.keys.store(key, self.kv_head, self.position)
            buffers.values.store(value, self.kv_head, self.position)
        low = self.lowest()
        cached = kernel.value(f"arith.subi {self.position}, {low} : index")
        self.scores(query, key.read, low, cached)
        total = self.softmax(cached)
        self.mixed(value.read, low, cached, total)

    def lowest(self) -> str:
        """The first position that the token sees."""
        kernel, window = self.kernel, self.sizes.window
        if window is None or window >= self.sizes.cache_length:
            return self.zero
        past = kernel.value(f"arith.subi {self.position}, {kernel.constant(window - 1)} : index")
        return kernel.value(f"arith.maxsi {past}, {self.zero} : index")

    def scores(self, query: Sequence[str], key: Sequence[str], low: str, cached: str) -> None:
        """Of the cached positions, of the new one behind them, and nothing up to a whole vector."""
        kernel, scores = self.kernel, self.buffers.scores
        vector = kernel.constant(LANES)
        whole = kernel.value(f"arith.divui {cached}, {vector} : index")
        last = kernel.times(whole, LANES)
        scores.store(kernel.constant(NEVER, FLOATS), [self.head, last], FLOATS)
        with kernel.loop(self.position, start=low) as loop:
            keys = self.buffers.keys.load(self.kv_head, loop.index)
            at = kernel.value(f"arith.subi {loop.index}, {low} : index")
            scores.store_scalar(self.dot(query, keys), [self.head, at])
        self.scaled_scores(query, low, cached)
        scores.store_scalar(self.dot(query, key), [self.head, cached])

    def scaled_scores(self, query: Sequence[str], low: str, cached: str) -> None:
        """Sums over codes become scores, 16 positions at once; of floats they are scores."""
        kernel, scores, keys = self.kernel, self.buffers.scores, self.buffers.keys
        if not isinstance(keys, CodeCache):
            return
        total = query[0]
        for part in query[1:]:
            total = kernel.value(f"arith.addf {total}, {part} : {FLOATS}")
        total = kernel.splat(kernel.sum_of(total), FLOATS)
        with kernel.loop(cached, LANES) as loop:
            raw = scores.load([self.head, loop.index], FLOATS)
            scale, minimum = keys.shared(self.kv_head, kernel.add(low, loop.index))
            start = self.times(minimum, total)
            score = kernel.value(f"vector.fma {raw}, {scale}, {start} : {FLOATS}")
            self.store_before(cached, loop.index, score, raw)

    def scaled_weights(self, low: str, cached: str) -> str:
        """Weights are multiplied with the scales of values that are codes.

        -> what all minima add to a number of the sum, a vector of it; zeros of floats
        """
        kernel, scores, values = self.kernel, self.buffers.scores, self.buffers.values
        none = kernel.constant("0.0", FLOATS)
        if not isinstance(values, CodeCache):
            return none
        with kernel.loop(cached, LANES, [(none, FLOATS)]) as loop:
            raw = scores.load([self.head, loop.index], FLOATS)
            scale, minimum = values.shared(self.kv_head, kernel.add(low, loop.index))
            self.store_before(cached, loop.index, self.times(raw, scale), raw)
            more = kernel.value(f"vector.fma {raw}, {minimum}, {loop.carried[0]} : {FLOATS}")
            loop.yielded = [self.chosen(cached, loop.index, more, loop.carried[0])]
        return kernel.splat(kernel.sum_of(loop.results[0]), FLOATS)

    def store_before(self, stop: str, index: str, new: str, old: str) -> None:
        """Write the new scores of the places before `stop`."""
        found = self.chosen(stop, index, new, old)
        self.buffers.scores.store(found, [self.head, index], FLOATS)

    def chosen(self, stop: str, index: str, new: str, old: str) -> str:
        """The new numbers of the places before `stop`, the old ones of others."""
        inside = lanes_before(self.kernel, index, stop)
        return self.kernel.value(f"arith.select {inside}, {new}, {old} : {BITS}, {FLOATS}")

    def softmax(self, cached: str) -> str:
        """Scores become weights that add up to what comes back, one f32."""
        kernel, scores = self.kernel, self.buffers.scores
        stop = kernel.add(cached, 1)
        never, none = kernel.constant(NEVER, FLOATS), kernel.constant("0.0", FLOATS)
        with kernel.loop(stop, LANES, [(never, FLOATS)]) as loop:
            seen = scores.load([self.head, loop.index], FLOATS)
            loop.yielded = [kernel.value(f"arith.maximumf {loop.carried[0]}, {seen} : {FLOATS}")]
        largest = kernel.value(
            f"vector.reduction <maximumf>, {loop.results[0]} : {FLOATS} into f32"
        )
        largest = kernel.splat(largest, FLOATS)
        with kernel.loop(stop, LANES, [(none, FLOATS)]) as loop:
            seen = scores.load([self.head, loop.index], FLOATS)
            seen = kernel.value(f"arith.subf {seen}, {largest} : {FLOATS}")
            weight = kernel.value(f"math.exp {seen} : {FLOATS}")
            scores.store(weight, [self.head, loop.index], FLOATS)
            loop.yielded = [kernel.value(f"arith.addf {loop.carried[0]}, {weight} : {FLOATS}")]
        return kernel.sum_of(loop.results[0])

    def mixed(self, value: Sequence[str], low: str, cached: str, total: str) -> None:
        """Write the values' weighted mean."""
        kernel, scores = self.kernel, self.buffers.scores
        own = kernel.splat(scores.load_scalar([self.head, cached]), FLOATS)
        minima = self.scaled_weights(low, cached)
        starts = [
            (kernel.value(f"vector.fma {part}, {own}, {minima} : {FLOATS}"), FLOATS)
            for part in value
        ]
        with kernel.loop(self.position, 1, starts, low) as loop:
            at = kernel.value(f"arith.subi {loop.index}, {low} : index")
            weight = kernel.splat(scores.load_scalar([self.head, at]), FLOATS)
            parts = self.buffers.values.load(self.kv_head, loop.index)
            loop.yielded = [
                kernel.value(f"vector.fma {part}, {weight}, {sum_} : {FLOATS}")
                for part, sum_ in zip(parts, loop.carried, strict=True)
            ]
        by = kernel.splat(total, FLOATS)
        start = self.start(self.head)
        for i, part in enumerate(loop.results):
            mean = kernel.value(f"arith.divf {part}, {by} : {FLOATS}")
            self.buffers.out.store(mean, [self.zero, kernel.add(start, LANES * i)], FLOATS)

    def rotated(self, buffer: Buffer, head: str) -> list[str]:
        """A head's vectors, turned by the position's angles."""
        cos, sin = (self.parts(of, [self.zero]) for of in (self.buffers.cos, self.buffers.sin))
        return rotated(self.kernel, self.parts(buffer, [self.zero], self.start(head)), cos, sin)

    def parts(self, buffer: Buffer, at: Sequence[str], start: str | None = None) -> list[str]:
        """A row's vectors, from its column `start` on."""
        kernel = self.kernel
        columns = [LANES * i for i in range(self.sizes.width // LANES)]
        places = [kernel.add(start, c) if start else kernel.constant(c) for c in columns]
        return [buffer.load([*at, place], FLOATS) for place in places]

    def dot(self, left: Sequence[str], right: Sequence[str]) -> str:
        """One f32."""
        kernel, total = self.kernel, self.times(left[0], right[0])
        for a, b in zip(left[1:], right[1:], strict=True):
            total = kernel.value(f"vector.fma {a}, {b}, {total} : {FLOATS}")
        return kernel.sum_of(total)

    def times(self, left: str, right: str) -> str:
        """Product of two vectors."""
        return self.kernel.value(f"arith.mulf {left}, {right} : {FLOATS}")

    def start(self, head: str) -> str:
        """First column of a head."""
        return self.kernel.times(head, self.sizes.width)
