"""Codes of a word vector, a byte each, out of what is stored of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trinity.lowering.kernels.cpu.bit_planes import Plane
from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import BYTES, LANES, WORDS, Kernel
from trinity.lowering.kernels.cpu.panels import POSITIONS
from trinity.lowering.kernels.cpu.stream import Stream
from trinity.lowering.kernels.cpu.weight_in_kernel import BitmapWord, Stored
from trinity.methods.formats.level_tables import zero_code


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

    def __init__(self, kernel: Kernel, stored: Stored, instructions: Instructions) -> None:
        self.kernel, self.panels, self.buffers = kernel, stored.panels, stored.buffers
        self.place = instructions.place
        integers, values = stored.panels.integers, stored.panels.format.codebook
        # Where codes are multiplied as integers, those of a table are looked up.
        self.table = integers.table if integers and instructions.dots else None
        self.shuffle = instructions.shuffle
        self.no_code = zero_code(values.table) if values else None
        streamed = stored.panels.streamed
        self.stream = Stream(kernel, stored, instructions) if streamed else None

    def starts(self, panel: str, block: str, vectors: Sequence[str]) -> list[str]:
        """Where each vector's stream stands at the start of a block; nothing without one."""
        return [self.stream.start(panel, block, v) for v in vectors] if self.stream else []

    def words(self, chunk: Chunk, positions: list[str]) -> Iterator[list[str]]:
        """The codes of every word vector of a chunk, a byte each; a vector for each of outputs.

        positions: of `starts`, moved on
        """
        if self.stream:
            for word in range(self.panels.chunk):
                yield [self._meant(of, 64) for of in self._next(chunk, word, positions)]
            return
        planes = self.panels.planes
        codes = [self._loaded(chunk, vector, planes) for vector in chunk.vectors]
        for word in range(self.panels.chunk):
            found = (self._unpacked(chunk, v, word, of) for v, of in enumerate(codes))
            yield [self._meant(of, 64) for of in found]

    def _meant(self, codes: str, size: int) -> str:
        """The bytes that codes of a table stand for, or codes as they are.  size: bytes"""
        if self.table is None:
            return codes
        assert self.shuffle  # where there are dot products
        return self.shuffle(self.kernel, self.table, codes, size)

    def _none(self, chunk: Chunk, v: int) -> str:
        """What a masked weight decodes to zero from, in every byte."""
        if self.no_code is not None:
            return self.kernel.constant(self.no_code, BYTES)
        return spread(self.kernel, chunk.zeros[v])

    def _next(self, chunk: Chunk, word: int, positions: list[str]) -> list[str]:
        """The next word vector of every stream."""
        assert self.stream
        found = []
        for v, position in enumerate(positions):
            bits = self._map(chunk, v, word).whole()
            none = self._none(chunk, v)
            # One line is read in the course of a chunk.
            code, positions[v] = self.stream.codes(position, bits, none, far=word == 0)
            found.append(code)
        return found

    def _map(self, chunk: Chunk, v: int, word: int) -> BitmapWord:
        """Which entries a word vector keeps."""
        place = self.kernel.add(self.kernel.times(chunk.index, self.panels.chunk), word)
        return BitmapWord(self.kernel, self.buffers, [chunk.panel, place, chunk.vectors[v]])

    def picked(self, chunk: Chunk) -> Iterator[tuple[str, str]]:
        """The kept codes of every word vector of a chunk, a byte each, and their positions; for one
        vector of outputs.
        """
        (vector,) = chunk.vectors
        loaded = self._loaded(chunk, vector, [*self.panels.planes, POSITIONS])
        for word in range(self.panels.chunk):
            own = loaded[POSITIONS.name][word // POSITIONS.lanes]
            shift = POSITIONS.bits * (word % POSITIONS.lanes)
            codes = self._meant(self._kept(word, loaded), self.panels.kept)
            yield codes, self._field(own, shift, POSITIONS)

    def _loaded(self, chunk: Chunk, vector: str, planes: Sequence[Plane]) -> dict[str, list[str]]:
        """The bytes of a chunk, by plane; one vector of bytes for each unit."""
        kernel, zero, found = self.kernel, self.kernel.constant(0), {}
        for plane in planes:
            units = self.panels.chunk // plane.lanes
            if units == 0:
                found[plane.name] = [self._shared(chunk, vector, plane)]
                continue
            first = kernel.times(chunk.index, units)
            found[plane.name] = [
                self.buffers[plane.name].stream(
                    [chunk.panel, kernel.add(first, i), vector, zero], self._kept_bytes
                )
                for i in range(units)
            ]
        return found

    def _shared(self, chunk: Chunk, vector: str, plane: Plane) -> str:
        """The bytes that a chunk shares with the next, its own word vectors moved to the front."""
        kernel = self.kernel
        sharing = kernel.constant(plane.lanes // self.panels.chunk)
        unit = kernel.value(f"arith.divui {chunk.index}, {sharing} : index")
        place = kernel.value(f"arith.remui {chunk.index}, {sharing} : index")
        at = [chunk.panel, unit, vector, kernel.constant(0)]
        stored = self.buffers[plane.name].stream(at, self._kept_bytes)
        words = f"vector<{self.panels.kept // 4}xi32>"
        by = kernel.times(place, self.panels.chunk * plane.bits)
        by = kernel.splat(kernel.value(f"arith.index_cast {by} : index to i32"), words)
        moved = kernel.bitcast(stored, self._kept_bytes, words)
        moved = kernel.value(f"arith.shrui {moved}, {by} : {words}")
        return kernel.bitcast(moved, words, self._kept_bytes)

    @property
    def _kept_bytes(self) -> str:
        """The type of the stored bytes of a word vector."""
        return f"vector<{self.panels.kept}xi8>"

    def _unpacked(self, chunk: Chunk, v: int, word: int, codes: Mapping[str, list[str]]) -> str:
        """The codes of one word vector, a byte each; the zero point where nothing is kept."""
        whole = self._kept(word, codes)
        if self.panels.sparse is None:
            return whole
        bits = self._map(chunk, v, word)
        count, none = self.panels.kept // LANES, self._none(chunk, v)
        return self.place(self.kernel, whole, count, bits, none)

    def _kept(self, word: int, codes: Mapping[str, list[str]]) -> str:
        """The stored codes of one word vector, a byte each."""
        kernel, kept = self.kernel, self._kept_bytes
        parts = []
        for plane in self.panels.planes:
            part = codes[plane.name][word // plane.lanes]
            parts.append(self._field(part, plane.bits * (word % plane.lanes) - plane.shift, plane))
        whole = parts[0]
        for part in parts[1:]:
            whole = kernel.value(f"arith.ori {whole}, {part} : {kept}")
        return whole

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


def spread(kernel: Kernel, zero: str) -> str:
    """A word's lowest byte in every byte of its lane."""
    whole = kernel.value(f"arith.muli {zero}, {kernel.constant(0x01010101, WORDS)} : {WORDS}")
    return kernel.bitcast(whole, WORDS, BYTES)
