"""Kept entries put into the places that a bitmap says, by flavour of processor.

*Placed*: every word of four bytes keeps equally many (N:2 and N:4), whose order is known.
*Expanded*: as many are kept as are kept, one behind another.
"""

from collections.abc import Callable
from typing import Protocol

from trinity.lowering.kernels.cpu.kernel_text import (
    BYTES,
    FLOATS,
    LANES,
    WORDS,
    Kernel,
    joined,
    parts,
)

HALF_BYTES, HALF_WORDS = "vector<32xi8>", "vector<8xi32>"
MASK = "vector<64xi1>"
MASKED = 0x80  # an index of `vpshufb` that gives zero


class Map(Protocol):
    """64 bits that say which entries a word vector keeps."""

    def whole(self) -> str:
        """An i64."""
        ...

    def half(self, number: int) -> str:
        """The lower or the upper ones, an i32."""
        ...


class Place(Protocol):
    """The bytes of a word vector, of which every word keeps `count`, in their places."""

    def __call__(self, kernel: Kernel, kept: str, count: int, bits: Map, none: str, /) -> str:
        """kept: 16 count bytes   none: 64 bytes, taken where nothing is kept"""
        ...


class Expand(Protocol):
    """The first entries of a vector in the lanes whose bits are set, `none` in the others."""

    def __call__(self, values: str, none: str, bits: str, /) -> str:
        """bits: an integer of as many as there are lanes"""
        ...


Expander = Callable[[Kernel, str], Expand]
"""What writes that into a kernel, for 64 bytes or 16 floats, by the type of the vector."""


def placed_avx512(kernel: Kernel, kept: str, count: int, bits: Map, none: str) -> str:
    """`vpexpandb`."""
    kind = f"vector<{count * LANES}xi8>"
    places = [i if i < count * LANES else -1 for i in range(64)]
    wide = kernel.value(f"vector.shuffle {kept}, {kept} {places} : {kind}, {kind}")
    return expanded_avx512(kernel, wide, none, _mask(kernel, bits.whole(), 64))


def placed_avx2(kernel: Kernel, kept: str, count: int, bits: Map, none: str) -> str:
    """`vpermd` looks up what `vpshufb` does in a word: the lower three of four bits tell patterns
    of equally many apart.
    """
    table = [0] * 8
    for pattern in range(16):
        if pattern.bit_count() == count:
            places = [i for i in range(4) if pattern >> i & 1]
            # Behind its kept bytes a word holds what `none` has.
            taken = [places.index(i) if i in places else count for i in range(4)]
            table[pattern & 7] = sum(index << 8 * i for i, index in enumerate(taken))
    patterns = kernel.numbers(table, "i32")
    shifts = kernel.numbers([4 * i for i in range(8)], "i32")
    own = kernel.numbers([0x04040404 * (i % 4) for i in range(8)], "i32")
    kind = f"vector<{count * LANES}xi8>"
    filled = [
        count * lane + i if i < count else 64 + 4 * lane for lane in range(LANES) for i in range(4)
    ]
    wide = kernel.value(
        f"vector.shuffle {kept}, {kept} {[min(i, count * LANES - 1) for i in range(64)]} "
        f": {kind}, {kind}"
    )
    full = kernel.value(f"vector.shuffle {wide}, {none} {filled} : {BYTES}, {BYTES}")
    found = []
    for half, source in enumerate(parts(kernel, full, BYTES, 2)):
        word = kernel.splat(bits.half(half), HALF_WORDS)
        moved = kernel.value(f"arith.shrui {word}, {shifts} : {HALF_WORDS}")
        order = looked_up(kernel, patterns, moved)
        order = kernel.value(f"arith.ori {order}, {own} : {HALF_WORDS}")
        order = kernel.bitcast(order, HALF_WORDS, HALF_BYTES)
        found.append(shuffled(kernel, source, order))
    return joined(kernel, found, "i8", 32)


def permuted_avx2(kernel: Kernel, four: str, places: str) -> str:
    """`vpermilps`: of four floats, in 16 lanes, those that the lower two bits of a word say.

    four: vector<4xf32>   places: 16 words
    """
    octet = "vector<8xf32>"
    both = kernel.value(
        f"vector.shuffle {four}, {four} {[0, 1, 2, 3] * 2} : vector<4xf32>, vector<4xf32>"
    )
    found = [
        kernel.value(
            f'llvm.call_intrinsic "llvm.x86.avx.vpermilvar.ps.256"({both}, {half})'
            f" : ({octet}, {HALF_WORDS}) -> {octet}"
        )
        for half in parts(kernel, places, WORDS, 2)
    ]
    return joined(kernel, found, "f32", 8)


def looked_up(kernel: Kernel, words: str, index: str) -> str:
    """`vpermd`: of 8 words those that the lower three bits of 8 indices say."""
    return kernel.value(
        f'llvm.call_intrinsic "llvm.x86.avx2.permd"({words}, {index})'
        f" : ({HALF_WORDS}, {HALF_WORDS}) -> {HALF_WORDS}"
    )


def shuffled(kernel: Kernel, source: str, order: str) -> str:
    """`vpshufb`: of each 16 bytes those that an index says, zero where its top bit is set."""
    return kernel.value(
        f'llvm.call_intrinsic "llvm.x86.avx2.pshuf.b"({source}, {order})'
        f" : ({HALF_BYTES}, {HALF_BYTES}) -> {HALF_BYTES}"
    )


def placed(kernel: Kernel, kept: str, count: int, bits: Map, none: str) -> str:
    """In plain vector operations.

    A word's j-th kept byte is at `j` of its own; which of its four places it goes to is how many
    bits stand below that place.
    """
    kind, own = f"vector<{count * LANES}xi8>", []
    for j in range(count):
        places = [lane * count + j for lane in range(LANES)]
        part = kernel.value(f"vector.shuffle {kept}, {kept} {places} : {kind}, {kind}")
        own.append(kernel.value(f"arith.extui {part} : vector<16xi8> to {WORDS}"))
    nibbles = kernel.value(f"vector.broadcast {bits.whole()} : i64 to vector<1xi64>")
    nibbles = kernel.bitcast(nibbles, "vector<1xi64>", "vector<16xi4>")
    nibbles = kernel.value(f"arith.extui {nibbles} : vector<16xi4> to {WORDS}")
    zero = kernel.bitcast(none, BYTES, WORDS)
    zero = kernel.value(f"arith.andi {zero}, {kernel.constant(255, WORDS)} : {WORDS}")
    one = kernel.constant(1, WORDS)
    seen = whole = kernel.constant(0, WORDS)
    for place in range(4):
        bit = kernel.value(f"arith.shrui {nibbles}, {kernel.constant(place, WORDS)} : {WORDS}")
        bit = kernel.value(f"arith.andi {bit}, {one} : {WORDS}")
        taken = own[0]
        for j in range(1, count):
            equal = kernel.value(f"arith.cmpi eq, {seen}, {kernel.constant(j, WORDS)} : {WORDS}")
            taken = _select(kernel, equal, own[j], taken)
        here = kernel.value(f"arith.cmpi eq, {bit}, {one} : {WORDS}")
        taken = _select(kernel, here, taken, zero)
        by = kernel.constant(8 * place, WORDS)
        taken = kernel.value(f"arith.shli {taken}, {by} : {WORDS}")
        whole = kernel.value(f"arith.ori {whole}, {taken} : {WORDS}")
        seen = kernel.value(f"arith.addi {seen}, {bit} : {WORDS}")
    return kernel.bitcast(whole, WORDS, BYTES)


def _select(kernel: Kernel, condition: str, yes: str, no: str, kind: str = WORDS) -> str:
    bits = f"{kind.partition('x')[0]}xi1>"
    return kernel.value(f"arith.select {condition}, {yes}, {no} : {bits}, {kind}")


def expander_avx512(kernel: Kernel, kind: str) -> Expand:
    """`vpexpandb`, `vexpandps`."""
    lanes = {BYTES: 64, FLOATS: LANES}[kind]

    def expanded(values: str, none: str, bits: str) -> str:
        return expanded_avx512(kernel, values, none, _mask(kernel, bits, lanes), kind)

    return expanded


def _mask(kernel: Kernel, bits: str, lanes: int) -> str:
    """An integer's bits as lanes."""
    mask = kernel.value(f"vector.broadcast {bits} : i{lanes} to vector<1xi{lanes}>")
    return kernel.bitcast(mask, f"vector<1xi{lanes}>", f"vector<{lanes}xi1>")


def expanded_avx512(kernel: Kernel, values: str, none: str, mask: str, kind: str = BYTES) -> str:
    """The first values in the lanes of a mask."""
    name, bits = {BYTES: ("v64i8", MASK), FLOATS: ("v16f32", f"vector<{LANES}xi1>")}[kind]
    return kernel.value(
        f'llvm.call_intrinsic "llvm.x86.avx512.mask.expand.{name}"({values}, {none}, {mask})'
        f" : ({kind}, {kind}, {bits}) -> {kind}"
    )


def expander_avx2(kernel: Kernel, kind: str) -> Expand:
    """A table of 2 KiB has the order of 8 entries for each of their maps."""
    return _TableOfBytes(kernel) if kind == BYTES else _TableOfFloats(kernel)


class _Table:
    """Orders by the bits of 8 entries: how many are kept before, `MASKED` where none is."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, orders = kernel, []
        for bits in range(256):
            kept = [bits >> i & 1 for i in range(8)]
            orders += [sum(kept[:i]) if kept[i] else MASKED for i in range(8)]
        self.table = kernel.table("orders", orders, (256, 8))

    def group(self, bits: str, kind: str, number: int) -> tuple[str, str]:
        """The order of the `number`-th 8 entries, 8 bytes, and how many of them are kept."""
        kernel = self.kernel
        if number:
            by = kernel.constant(8 * number, kind)
            bits = kernel.value(f"arith.shrui {bits}, {by} : {kind}")
        own = kernel.value(f"arith.andi {bits}, {kernel.constant(255, kind)} : {kind}")
        at = kernel.value(f"arith.index_cast {own} : {kind} to index")
        count = kernel.value(f"math.ctpop {own} : {kind}")
        count = kernel.value(f"arith.index_cast {count} : {kind} to index")
        return self.table.load([at, kernel.constant(0)], "vector<8xi8>"), count


class _TableOfBytes(_Table):
    """64 bytes, by `vpshufb`: entries from where a group's begin are read from scratch memory."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.given = kernel.scratch((64 + 8,), "i8")

    def __call__(self, values: str, none: str, bits: str) -> str:
        """See `Expand`."""
        kernel, at = self.kernel, self.kernel.constant(0)
        self.given.store(values, [at], BYTES)
        sources, orders = [], []
        for number in range(8):
            order, count = self.group(bits, "i64", number)
            orders.append(order)
            sources.append(self.given.load([at], "vector<8xi8>"))
            at = kernel.add(at, count)
        upper = kernel.numbers([8 * (i // 8 % 2) for i in range(32)], "i8")
        found = []
        for half, other in enumerate(parts(kernel, none, BYTES, 2)):
            own = slice(4 * half, 4 * half + 4)
            source = joined(kernel, sources[own], "i8", 8)
            order = joined(kernel, orders[own], "i8", 8)
            order = kernel.value(f"arith.ori {order}, {upper} : {HALF_BYTES}")
            masked = kernel.constant(0, HALF_BYTES)
            masked = kernel.value(f"arith.cmpi slt, {order}, {masked} : {HALF_BYTES}")
            taken = shuffled(kernel, source, order)
            found.append(_select(kernel, masked, other, taken, HALF_BYTES))
        return joined(kernel, found, "i8", 32)


class _TableOfFloats(_Table):
    """16 floats, by `vpermd`."""

    def __call__(self, values: str, none: str, bits: str) -> str:
        """See `Expand`."""
        kernel = self.kernel
        words, others = (kernel.bitcast(of, FLOATS, WORDS) for of in (values, none))
        low, high = parts(kernel, words, WORDS, 2)
        found, before = [], "0"
        for number, other in enumerate(parts(kernel, others, WORDS, 2)):
            order, count = self.group(bits, "i16", number)
            order = kernel.value(f"arith.extsi {order} : vector<8xi8> to {HALF_WORDS}")
            masked = kernel.constant(0, HALF_WORDS)
            masked = kernel.value(f"arith.cmpi slt, {order}, {masked} : {HALF_WORDS}")
            if number:
                order = kernel.value(f"arith.addi {order}, {before} : {HALF_WORDS}")
            taken = looked_up(kernel, low, order)
            if number:
                last = kernel.constant(7, HALF_WORDS)
                far = kernel.value(f"arith.cmpi sgt, {order}, {last} : {HALF_WORDS}")
                taken = _select(kernel, far, looked_up(kernel, high, order), taken, HALF_WORDS)
            else:
                word = kernel.value(f"arith.index_cast {count} : index to i32")
                before = kernel.splat(word, HALF_WORDS)
            found.append(_select(kernel, masked, other, taken, HALF_WORDS))
        return kernel.bitcast(joined(kernel, found, "i32", 8), WORDS, FLOATS)


def expander(kernel: Kernel, kind: str) -> Expand:
    """A loop over the lanes."""
    lanes, element = kind.removeprefix("vector<").rstrip(">").split("x")
    given, target = (kernel.scratch((int(lanes),), element) for _ in range(2))

    def expanded(values: str, none: str, bits: str) -> str:
        zero, integer = kernel.constant(0), f"i{lanes}"
        given.store(values, [zero], kind)
        target.store(none, [zero], kind)
        with kernel.loop(int(lanes), 1, [(zero, "index")]) as loop:
            by = kernel.value(f"arith.index_cast {loop.index} : index to {integer}")
            bit = kernel.value(f"arith.shrui {bits}, {by} : {integer}")
            bit = kernel.value(f"arith.trunci {bit} : {integer} to i1")
            value = given.load_scalar([loop.carried[0]])
            old = target.load_scalar([loop.index])
            value = kernel.value(f"arith.select {bit}, {value}, {old} : {element}")
            target.store_scalar(value, [loop.index])
            step = kernel.value(f"arith.index_castui {bit} : i1 to index")
            loop.yielded = [kernel.add(loop.carried[0], step)]
        return target.load([zero], kind)

    return expanded
