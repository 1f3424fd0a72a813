"""Weights in the lanes of vectors as float32: floats, all of them or those of a mask, and levels of
a table times their scales.
"""

from collections.abc import Sequence
from typing import Protocol

from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import BYTES, FLOATS, LANES, WORDS, Kernel
from trinity.lowering.kernels.cpu.levels import Levels
from trinity.lowering.kernels.cpu.panel_geometry import WORD
from trinity.lowering.kernels.cpu.scales import Scales
from trinity.lowering.kernels.cpu.stream import Stream
from trinity.lowering.kernels.cpu.weight_in_kernel import BitmapWord, Stored, widened
from trinity.lowering.mlir.builder import MLIR_TYPES


class Floats(Protocol):
    """Float weights, four inputs at a time."""

    def starts(self, panel: str, vectors: Sequence[str]) -> list[str]:
        """Where each vector's stream begins; nothing without one."""
        ...

    def word(
        self, panel: str, word: str, vectors: Sequence[str], positions: list[str]
    ) -> list[list[str]]:
        """The weights of each input of a word, in float32, a vector for each of outputs; of inputs
        that are not there any of the weight's numbers, or zeros.

        positions: of `starts`, moved on
        """
        ...


def floats_of(kernel: Kernel, stored: Stored, instructions: Instructions) -> Floats:
    """Those of a weight."""
    if stored.panels.codes:
        return LevelFloats(kernel, stored, instructions)
    if stored.panels.streamed:
        return MaskedFloats(kernel, stored, instructions)
    return DenseFloats(kernel, stored)


class DenseFloats:
    """Floats of which every one is stored."""

    def __init__(self, kernel: Kernel, stored: Stored) -> None:
        self.kernel, self.values = kernel, stored.buffers["panel_values"]
        self.inputs = stored.panels.format.shape[1]
        self.element = MLIR_TYPES[stored.panels.own_shapes()["panel_values"][1]]

    def starts(self, panel: str, vectors: Sequence[str]) -> list[str]:
        """See `Floats`."""
        return []

    def word(
        self, panel: str, word: str, vectors: Sequence[str], positions: list[str]
    ) -> list[list[str]]:
        """See `Floats`."""
        kernel, first = self.kernel, self.kernel.times(word, WORD)
        columns = [kernel.times(vector, LANES) for vector in vectors]
        found = []
        for place in range(WORD):
            last = kernel.constant(self.inputs - 1)
            index = kernel.value(f"arith.minui {kernel.add(first, place)}, {last} : index")
            found.append([self.at([panel, index, column]) for column in columns])
        return found

    def at(self, place: Sequence[str]) -> str:
        """The weights of one input.  place: panel, input, first output in the panel"""
        return widened(self.kernel, self.values, place, self.element)


class LevelFloats:
    """Levels of a table times their scales, where every code is stored and no group is padded."""

    def __init__(self, kernel: Kernel, stored: Stored, instructions: Instructions) -> None:
        values = stored.panels.format.codebook
        assert values
        self.kernel, self.panels = kernel, stored.panels
        (self.plane,) = stored.panels.planes
        self.codes = stored.buffers[self.plane.name]
        self.levels = Levels(kernel, values.table, instructions.look_up)
        self.scales = Scales(kernel, stored, self.levels.unit)

    def starts(self, panel: str, vectors: Sequence[str]) -> list[str]:
        """See `Floats`."""
        return []

    def word(
        self, panel: str, word: str, vectors: Sequence[str], positions: list[str]
    ) -> list[list[str]]:
        """See `Floats`."""
        kernel, found = self.kernel, list[list[str]]()
        last, size = kernel.constant(self.panels.words - 1), kernel.constant(self.panels.group)
        word = kernel.value(f"arith.minui {word}, {last} : index")
        group = kernel.value(f"arith.divui {kernel.times(word, WORD)}, {size} : index")
        scales = [self.scales.at([panel, group, kernel.times(v, LANES)]) for v in vectors]
        codes = [self._codes(panel, word, vector) for vector in vectors]
        mask = kernel.constant(2**self.plane.bits - 1, WORDS)
        for place in range(WORD):
            found.append([])
            by = kernel.constant(8 * place, WORDS)
            for own, scale in zip(codes, scales, strict=True):
                code = kernel.value(f"arith.shrui {own}, {by} : {WORDS}")
                code = kernel.value(f"arith.andi {code}, {mask} : {WORDS}")
                level = self.levels.of(code)
                found[-1].append(kernel.value(f"arith.mulf {level}, {scale} : {FLOATS}"))
        return found

    def _codes(self, panel: str, word: str, vector: str) -> str:
        """The codes of a word, four of an output, each in the lowest bits of its byte."""
        kernel, plane, zero = self.kernel, self.plane, self.kernel.constant(0)
        lanes = kernel.constant(plane.lanes)
        unit = kernel.value(f"arith.divui {word}, {lanes} : index")
        stored = self.codes.stream([panel, unit, vector, zero], BYTES)
        codes = kernel.bitcast(stored, BYTES, WORDS)
        if plane.lanes == 1:
            return codes
        lane = kernel.value(f"arith.remui {word}, {lanes} : index")
        by = kernel.value(f"arith.index_cast {kernel.times(lane, plane.bits)} : index to i32")
        return kernel.value(f"arith.shrui {codes}, {kernel.splat(by, WORDS)} : {WORDS}")


class MaskedFloats:
    """Floats of a stream."""

    def __init__(self, kernel: Kernel, stored: Stored, instructions: Instructions) -> None:
        self.kernel, self.buffers = kernel, stored.buffers
        self.words = stored.panels.words
        self.stream = Stream(kernel, stored, instructions)

    def starts(self, panel: str, vectors: Sequence[str]) -> list[str]:
        """See `Floats`."""
        whole = self.kernel.constant(0)
        return [self.stream.start(panel, whole, vector) for vector in vectors]

    def word(
        self, panel: str, word: str, vectors: Sequence[str], positions: list[str]
    ) -> list[list[str]]:
        """See `Floats`."""
        kernel, none = self.kernel, self.kernel.constant(0, "i64")
        last = kernel.constant(self.words - 1)
        there = kernel.value(f"arith.cmpi ule, {word}, {last} : index")
        word = kernel.value(f"arith.minui {word}, {last} : index")
        bits = [BitmapWord(kernel, self.buffers, [panel, word, v]).whole() for v in vectors]
        bits = [kernel.value(f"arith.select {there}, {b}, {none} : i64") for b in bits]
        found: list[list[str]] = []
        for place in range(WORD):
            found.append([])
            for v, position in enumerate(positions):
                value, positions[v] = self.stream.floats(position, bits[v], place)
                found[-1].append(value)
        return found
