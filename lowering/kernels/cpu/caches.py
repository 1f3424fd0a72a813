"""Keys and values as kernels write and read them: floats, or codes of 8 or 4 bits.

Codes of a cache lie in one tensor, one plane behind another, so that a kernel takes sixteen
positions' scales in one load:

    scale, minimum: float16 [kv_heads, cache_length]   codes: [kv_heads, cache_length, width bits/8]

At 4 bits a byte holds entry i in its low half and entry i + width/2 in its high one: unpacking
crosses no lanes.  A number is `minimum + scale code`, and both are the same for all of a head's
numbers at a position, so sums over them are made of codes: a score is
`scale (q . codes) + minimum sum(q)`, and a mean of values `sum((w scale) codes) + sum(w minimum)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, WORDS, Buffer, Kernel
from trinity.lowering.kernels.decoder_parts import Heads

CACHED_BITS = (4, 8)  # of codes that kernels read
BYTES = f"vector<{LANES}xi8>"
HALF_FLOATS = f"vector<{LANES}xf16>"
BITS = f"vector<{LANES}xi1>"
SHIFT = 8388608.0  # 2^23: a float32 plus it is a whole number, whose low bits are that number


@dataclass(frozen=True)
class Row:
    """One position's numbers of one head, in vectors.

    read: as attention reads them   words: their codes, i32   scale, minimum: f16
    """

    read: list[str]
    words: list[str]
    scale: str = ""
    minimum: str = ""


class Cache(Protocol):
    """The keys, or the values, of a block."""

    def row(self, parts: Sequence[str]) -> Row:
        """What a position's numbers become."""
        ...

    def store(self, row: Row, head: str, position: str) -> None:
        """Write a position of a key/value head."""
        ...

    def load(self, head: str, position: str) -> list[str]:
        """Its numbers; of `CodeCache` codes as floats, which `shared` makes numbers of."""
        ...

    def numbers(self, head: str, position: str) -> list[str]:
        """Its numbers."""
        ...


def cache_of(kernel: Kernel, argument: str, sizes: Heads) -> Cache:
    """Of a binding of the kernel."""
    if sizes.kept is None:
        return FloatCache(kernel, kernel.region(argument, 0, sizes.cache, "f32"), sizes.width)
    return CodeCache(kernel, argument, sizes)


class FloatCache:
    """Floats, as they are."""

    def __init__(self, kernel: Kernel, buffer: Buffer, width: int) -> None:
        """buffer: float32 [1, kv_heads, cache_length, width]"""
        self.kernel, self.buffer, self.zero = kernel, buffer, kernel.constant(0)
        self.columns = [kernel.constant(i) for i in range(0, width, LANES)]

    def row(self, parts: Sequence[str]) -> Row:
        """See `Cache`."""
        return Row(list(parts), [])

    def store(self, row: Row, head: str, position: str) -> None:
        """See `Cache`."""
        for part, column in zip(row.read, self.columns, strict=True):
            self.buffer.store(part, [self.zero, head, position, column], FLOATS)

    def load(self, head: str, position: str) -> list[str]:
        """See `Cache`."""
        return [self.buffer.load([self.zero, head, position, c], FLOATS) for c in self.columns]

    def numbers(self, head: str, position: str) -> list[str]:
        """See `Cache`."""
        return self.load(head, position)


class CodeCache:
    """Codes of 4 or 8 bits."""

    def __init__(self, kernel: Kernel, argument: str, sizes: Heads) -> None:
        """argument: as many bytes as `sizes.cache` has, in the planes above"""
        assert sizes.kept
        self.kernel, self.bits, self.parts = kernel, sizes.kept.bits, sizes.width // LANES
        shape = (sizes.kv_heads, sizes.cache_length)
        plane = 2 * sizes.kv_heads * sizes.cache_length
        self.scales = kernel.region(argument, 0, shape, "f16")
        self.minima = kernel.region(argument, plane, shape, "f16")
        row_bytes = sizes.width * self.bits // 8
        self.codes = kernel.region(argument, 2 * plane, (*shape, row_bytes), "i8")

    def row(self, parts: Sequence[str]) -> Row:
        """See `Cache`.  The same roundings as `methods.formats.cache_codes`."""
        kernel, top = self.kernel, 2**self.bits - 1
        low, high = (self._extreme(parts, kind) for kind in ("minimumf", "maximumf"))
        span = kernel.value(f"arith.subf {high}, {low} : f32")
        steps = kernel.constant(float(top), "f32")
        span = kernel.value(f"arith.divf {span}, {steps} : f32")
        scale, minimum = (kernel.value(f"arith.truncf {x} : f32 to f16") for x in (span, low))
        step, start = (self._wide(x) for x in (scale, minimum))
        none = kernel.constant("0.0", "f32")
        some = kernel.value(f"arith.cmpf ogt, {step}, {none} : f32")
        endless = kernel.constant("0x7F800000", "f32")  # infinity: every code is 0
        divisor = kernel.value(f"arith.select {some}, {step}, {endless} : f32")
        step, start, divisor = (kernel.splat(x, FLOATS) for x in (step, start, divisor))
        words = [self._code(part, start, divisor, top) for part in parts]
        read = [self._number(self._float(word), step, start) for word in words]
        return Row(read, words, scale, minimum)

    def store(self, row: Row, head: str, position: str) -> None:
        """See `Cache`."""
        kernel, words = self.kernel, row.words
        if self.bits == 4:
            half, by = len(words) // 2, kernel.constant(4, WORDS)
            high = [kernel.value(f"arith.shli {word}, {by} : {WORDS}") for word in words[half:]]
            words = [
                kernel.value(f"arith.ori {a}, {b} : {WORDS}")
                for a, b in zip(words[:half], high, strict=True)
            ]
        for i, word in enumerate(words):
            byte = kernel.value(f"arith.trunci {word} : {WORDS} to {BYTES}")
            self.codes.store(byte, [head, position, kernel.constant(LANES * i)], BYTES)
        self.scales.store_scalar(row.scale, [head, position])
        self.minima.store_scalar(row.minimum, [head, position])

    def load(self, head: str, position: str) -> list[str]:
        """See `Cache`."""
        kernel, loaded = self.kernel, self.parts * self.bits // 8
        found = []
        for i in range(loaded):
            byte = self.codes.load([head, position, kernel.constant(LANES * i)], BYTES)
            found.append(kernel.value(f"arith.extui {byte} : {BYTES} to {WORDS}"))
        if self.bits == 4:
            low, by = kernel.constant(15, WORDS), kernel.constant(4, WORDS)
            high = [kernel.value(f"arith.shrui {word}, {by} : {WORDS}") for word in found]
            found = [kernel.value(f"arith.andi {word}, {low} : {WORDS}") for word in found] + high
        return [self._float(word) for word in found]

    def shared(self, head: str, position: str) -> tuple[str, str]:
        """Scales and minima of 16 positions from one on; past the last they are none."""
        scale, minimum = (
            self.kernel.value(
                f"arith.extf {plane.load([head, position], HALF_FLOATS)} "
                f": {HALF_FLOATS} to {FLOATS}"
            )
            for plane in (self.scales, self.minima)
        )
        return scale, minimum

    def numbers(self, head: str, position: str) -> list[str]:
        """See `Cache`."""
        step, start = (
            self.kernel.splat(self._wide(plane.load_scalar([head, position])), FLOATS)
            for plane in (self.scales, self.minima)
        )
        return [self._number(code, step, start) for code in self.load(head, position)]

    def _extreme(self, parts: Sequence[str], kind: str) -> str:
        """The smallest or largest number, f32."""
        found = list(parts)
        while len(found) > 1:
            pairs = zip(found[::2], found[1::2], strict=False)
            odd = found[-1:] if len(found) % 2 else []
            found = [self.kernel.value(f"arith.{kind} {a}, {b} : {FLOATS}") for a, b in pairs] + odd
        return self.kernel.value(f"vector.reduction <{kind}>, {found[0]} : {FLOATS} into f32")

    def _code(self, part: str, start: str, divisor: str, top: int) -> str:
        """Codes of a vector, i32."""
        kernel = self.kernel
        code = kernel.value(f"arith.subf {part}, {start} : {FLOATS}")
        code = kernel.value(f"arith.divf {code}, {divisor} : {FLOATS}")
        for kind, limit in (("maxnumf", 0.0), ("minnumf", float(top))):  # NaN gets a code too
            code = kernel.value(f"arith.{kind} {code}, {kernel.constant(limit, FLOATS)} : {FLOATS}")
        code = kernel.value(f"arith.addf {code}, {kernel.constant(SHIFT, FLOATS)} : {FLOATS}")
        word = kernel.bitcast(code, FLOATS, WORDS)
        return kernel.value(f"arith.andi {word}, {kernel.constant(top, WORDS)} : {WORDS}")

    def _float(self, word: str) -> str:
        return self.kernel.value(f"arith.sitofp {word} : {WORDS} to {FLOATS}")

    def _number(self, code: str, step: str, start: str) -> str:
        return self.kernel.value(f"vector.fma {code}, {step}, {start} : {FLOATS}")

    def _wide(self, half: str) -> str:
        return self.kernel.value(f"arith.extf {half} : f16 to f32")


def lanes_before(kernel: Kernel, index: str, stop: str) -> str:
    """Which of 16 places from `index` on are before `stop`.  -> vector of i1"""
    left = kernel.value(f"arith.subi {stop}, {index} : index")
    left = kernel.splat(kernel.value(f"arith.index_cast {left} : index to i32"), WORDS)
    order = kernel.numbers(list(range(LANES)), "i32")
    return kernel.value(f"arith.cmpi slt, {order}, {left} : {WORDS}")
