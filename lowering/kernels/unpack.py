"""Stored weights in the lanes of vectors: codes of a word vector a byte each, kept floats in place.

Where a processor puts entries in their places by a bitmap itself (AVX-512 and VBMI2, *native*), one
instruction does; elsewhere plain operations do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trinity.lowering.builder import MLIR_TYPES
from trinity.lowering.kernels.bits import Plane
from trinity.lowering.kernels.emit import FLOATS, LANES, WORDS, Buffer, Kernel
from trinity.lowering.kernels.panels import WORD, Panels
from trinity.lowering.kernels.stored import FactorName

BYTES = "vector<64xi8>"


@dataclass(frozen=True)
class Stored:
    """A weight, or a factor of one, in a kernel's memory: its parts by name."""

    panels: Panels
    buffers: Mapping[str, Buffer]

    @staticmethod
    def of(kernel: Kernel, argument: str, whole: Panels, factor: FactorName | None) -> "Stored":
        """argument: the bytes of a weight, of which this is the base or a factor"""
        panels = whole.factors[factor] if factor else whole
        prefix = f"{factor}_" if factor else ""
        buffers = {
            key: kernel.region(argument, whole.offsets[prefix + key], shape, MLIR_TYPES[dtype])
            for key, (shape, dtype) in panels.own_shapes().items()
        }
        return Stored(panels, buffers)


@dataclass(frozen=True)
class Chunk:
    """Word vectors that are read at once: of a panel, the `index`-th of the row, for some vectors
    of outputs, each with its zero point as words.
    """

    panel: str
    index: str
    vectors: Sequence[str]
    zeros: Sequence[str]


class Unpacker:
    """Codes of one weight."""

    def __init__(self, kernel: Kernel, stored: Stored, native: bool) -> None:
        self.kernel, self.panels, self.buffers = kernel, stored.panels, stored.buffers
        self.native = native
        self.stream = Stream(kernel, stored, native) if stored.panels.streamed else None

    def starts(self, panel: str, block: str, vectors: Sequence[str]) -> list[str]:
        """Where each vector's stream stands at the start of a block; nothing without one."""
        return [self.stream.start(panel, block, v) for v in vectors] if self.stream else []

    def words(self, chunk: Chunk, positions: list[str]) -> Iterator[list[str]]:
        """The codes of every word vector of a chunk, a byte each; a vector for each of outputs.

        positions: of `starts`, moved on
        """
        if self.stream:
            for word in range(self.panels.chunk):
                yield self._next(chunk, word, positions)
            return
        codes = [self._codes(chunk, vector) for vector in chunk.vectors]
        for word in range(self.panels.chunk):
            yield [self._unpacked(chunk, v, word, of) for v, of in enumerate(codes)]

    def _next(self, chunk: Chunk, word: int, positions: list[str]) -> list[str]:
        """The next word vector of every stream."""
        assert self.stream
        found = []
        for v, position in enumerate(positions):
            bits = self._bitmap(chunk, v, word)
            none = spread(self.kernel, chunk.zeros[v])
            # One line is read in the course of a chunk.
            code, positions[v] = self.stream.codes(position, bits, none, far=word == 0)
            found.append(code)
        return found

    def _bitmap(self, chunk: Chunk, v: int, word: int) -> str:
        """Which entries a word vector keeps, an i64."""
        place = self.kernel.add(self.kernel.times(chunk.index, self.panels.chunk), word)
        return bitmap_word(self.kernel, self.buffers, [chunk.panel, place, chunk.vectors[v]])

    def _codes(self, chunk: Chunk, vector: str) -> dict[str, list[str]]:
        """The bytes of a chunk, by plane; one vector of bytes for each unit."""
        kernel, zero, found = self.kernel, self.kernel.constant(0), {}
        for plane in self.panels.planes:
            units = self.panels.chunk // plane.lanes
            first = kernel.times(chunk.index, units)
            found[plane.name] = [
                self.buffers[plane.name].stream(
                    [chunk.panel, kernel.add(first, i), vector, zero], self._kept_bytes
                )
                for i in range(units)
            ]
        return found

    @property
    def _kept_bytes(self) -> str:
        """The type of the stored bytes of a word vector."""
        return f"vector<{self.panels.kept}xi8>"

    def _unpacked(self, chunk: Chunk, v: int, word: int, codes: Mapping[str, list[str]]) -> str:
        """The codes of one word vector, a byte each; the zero point where nothing is kept."""
        kernel, kept = self.kernel, self._kept_bytes
        parts = []
        for plane in self.panels.planes:
            part = codes[plane.name][word // plane.lanes]
            parts.append(self._field(part, plane.bits * (word % plane.lanes) - plane.shift, plane))
        whole = parts[0]
        for part in parts[1:]:
            whole = kernel.value(f"arith.ori {whole}, {part} : {kept}")
        if self.panels.sparse is None:
            return whole
        bits = self._bitmap(chunk, v, word)
        if self.native:
            places = ", ".join(str(i if i < self.panels.kept else -1) for i in range(64))
            wide = kernel.value(f"vector.shuffle {whole}, {whole} [{places}] : {kept}, {kept}")
            return expanded(kernel, wide, spread(kernel, chunk.zeros[v]), bits, BYTES)
        return self._spread(whole, bits, chunk.zeros[v])

    def _field(self, value: str, right: int, plane: Plane) -> str:
        """Bits of a plane, moved right by `right` (left if negative) and cut out of each byte."""
        kernel, kept = self.kernel, self._kept_bytes
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
                f"{self._kept_bytes}, {self._kept_bytes}"
            )
            own.append(kernel.value(f"arith.extui {part} : vector<16xi8> to {WORDS}"))
        nibbles = kernel.value(f"vector.broadcast {bits} : i64 to vector<1xi64>")
        nibbles = kernel.bitcast(nibbles, "vector<1xi64>", "vector<16xi4>")
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


class Stream:
    """Kept entries one behind another, and how they come to their places."""

    def __init__(self, kernel: Kernel, stored: Stored, native: bool) -> None:
        self.kernel, self.panels, self.native = kernel, stored.panels, native
        self.buffers, self.entries = stored.buffers, stored.buffers["panel_stream"]
        self.element = MLIR_TYPES[self.panels.own_shapes()["panel_stream"][1]]
        if not native:
            self.kind, self.lanes = (FLOATS, LANES) if self.panels.format.dtype else (BYTES, 64)
            wide = "f32" if self.panels.format.dtype else "i8"
            self.given, self.placed = (kernel.scratch((self.lanes,), wide) for _ in range(2))

    def start(self, panel: str, stretch: str, vector: str) -> str:
        """Where a stretch begins."""
        found = self.buffers["panel_starts"].load_scalar([panel, stretch, vector])
        return self.kernel.value(f"arith.index_cast {found} : i32 to index")

    def codes(self, position: str, bits: str, none: str, far: bool) -> tuple[str, str]:
        """The codes of a word vector, `none` where nothing is kept, and where the next one is.

        far: whether memory further on is asked for
        """
        kernel, per = self.kernel, self.panels.entries_per_element
        values = self._read(position, f"vector<{64 // per}xi8>", far)
        count = self._count(bits, "i64")
        if per == 2:
            values = self._nibbles(values)
            one = kernel.constant(1)
            count = kernel.value(f"arith.shrui {kernel.add(count, 1)}, {one} : index")
        return self._in_place(values, none, bits, BYTES), kernel.add(position, count)

    def floats(self, position: str, bits: str, place: int) -> tuple[str, str]:
        """The weights of one input of a word vector, zero where nothing is kept, and where the next
        one's are.

        bits: of the word vector   place: of the input in it
        """
        kernel, kind = self.kernel, f"vector<{LANES}x{self.element}>"
        if place:
            by = kernel.constant(LANES * place, "i64")
            bits = kernel.value(f"arith.shrui {bits}, {by} : i64")
        bits = kernel.value(f"arith.trunci {bits} : i64 to i16")
        values = self._read(position, kind, far=place % 2 == 0)
        if self.element != "f32":
            values = kernel.value(f"arith.extf {values} : {kind} to {FLOATS}")
        none = kernel.constant("0.0", FLOATS)
        after = kernel.add(position, self._count(bits, "i16"))
        return self._in_place(values, none, bits, FLOATS), after

    def _read(self, position: str, kind: str, far: bool) -> str:
        """So many elements as there can be, and perhaps some of the next."""
        read = self.entries.stream if far else self.entries.load
        return read([self.kernel.constant(0), position], kind)

    def _count(self, bits: str, kind: str) -> str:
        """How many are set, an index."""
        count = self.kernel.value(f"math.ctpop {bits} : {kind}")
        return self.kernel.value(f"arith.index_cast {count} : {kind} to index")

    def _nibbles(self, values: str) -> str:
        """A byte for each half of 32 bytes, the lower first."""
        kernel, wide = self.kernel, "vector<32xi16>"
        values = kernel.value(f"arith.extui {values} : vector<32xi8> to {wide}")
        upper = kernel.value(f"arith.shli {values}, {kernel.constant(4, wide)} : {wide}")
        both = kernel.value(f"arith.ori {values}, {upper} : {wide}")
        both = kernel.bitcast(both, wide, BYTES)
        return kernel.value(f"arith.andi {both}, {kernel.constant(15, BYTES)} : {BYTES}")

    def _in_place(self, values: str, none: str, bits: str, kind: str) -> str:
        """The first values in the lanes whose bits are set, `none` in the others."""
        if self.native:
            return expanded(self.kernel, values, none, bits, kind)
        kernel, zero = self.kernel, self.kernel.constant(0)
        integer = f"i{self.lanes}"
        self.given.store(values, [zero], kind)
        self.placed.store(none, [zero], kind)
        element = kind.split("x")[1][:-1]
        with kernel.loop(self.lanes, 1, [(zero, "index")]) as loop:
            by = kernel.value(f"arith.index_cast {loop.index} : index to {integer}")
            bit = kernel.value(f"arith.shrui {bits}, {by} : {integer}")
            bit = kernel.value(f"arith.trunci {bit} : {integer} to i1")
            value = self.given.load_scalar([loop.carried[0]])
            old = self.placed.load_scalar([loop.index])
            value = kernel.value(f"arith.select {bit}, {value}, {old} : {element}")
            self.placed.store_scalar(value, [loop.index])
            step = kernel.value(f"arith.index_castui {bit} : i1 to index")
            loop.yielded = [kernel.add(loop.carried[0], step)]
        return self.placed.load([zero], kind)


def bitmap_word(kernel: Kernel, buffers: Mapping[str, Buffer], at: Sequence[str]) -> str:
    """One entry of `panel_bitmap`."""
    bits = buffers["panel_bitmap"].stream(at, "vector<1xi64>")
    return kernel.value(f"vector.extract {bits}[0] : i64 from vector<1xi64>")


def expanded(kernel: Kernel, values: str, none: str, bits: str, kind: str) -> str:
    """The first values in the lanes whose bits are set, by one AVX-512 instruction."""
    lanes = kind.removeprefix("vector<").split("x")[0]
    name = {BYTES: "v64i8", FLOATS: "v16f32"}[kind]
    mask = kernel.value(f"vector.broadcast {bits} : i{lanes} to vector<1xi{lanes}>")
    mask = kernel.bitcast(mask, f"vector<1xi{lanes}>", f"vector<{lanes}xi1>")
    return kernel.value(
        f'llvm.call_intrinsic "llvm.x86.avx512.mask.expand.{name}"({values}, {none}, {mask})'
        f" : ({kind}, {kind}, vector<{lanes}xi1>) -> {kind}"
    )


def spread(kernel: Kernel, zero: str) -> str:
    """A word's lowest byte in every byte of its lane: what a masked weight decodes to zero from."""
    whole = kernel.value(f"arith.muli {zero}, {kernel.constant(0x01010101, WORDS)} : {WORDS}")
    return kernel.bitcast(whole, WORDS, BYTES)
