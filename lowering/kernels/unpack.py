"""Codes of a word vector, a byte each, out of what is stored of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trinity.lowering.kernels.bits import Plane
from trinity.lowering.kernels.emit import LANES, WORDS, Kernel
from trinity.lowering.kernels.panels import WORD
from trinity.lowering.kernels.parts import Stored, bitmap_word
from trinity.lowering.kernels.stream import BYTES, Stream, expanded


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


def spread(kernel: Kernel, zero: str) -> str:
    """A word's lowest byte in every byte of its lane: what a masked weight decodes to zero from."""
    whole = kernel.value(f"arith.muli {zero}, {kernel.constant(0x01010101, WORDS)} : {WORDS}")
    return kernel.bitcast(whole, WORDS, BYTES)
