"""The parts of a stored weight in a kernel's memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, Buffer, Kernel
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.kernels.kernel_storage import FactorName
from trinity.lowering.mlir.builder import MLIR_TYPES

HALVES = "panel_bitmap, as words of 32 bits"


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
        if "panel_bitmap" in buffers:
            *outer, last = panels.own_shapes()["panel_bitmap"][0]
            start = whole.offsets[f"{prefix}panel_bitmap"]
            buffers[HALVES] = kernel.region(argument, start, (*outer, 2 * last), "i32")
        return Stored(panels, buffers)


@dataclass(frozen=True)
class BitmapWord:
    """One entry of `panel_bitmap`, to be read."""

    kernel: Kernel
    buffers: Mapping[str, Buffer]
    at: Sequence[str]

    def whole(self) -> str:
        """An i64."""
        bits = self.buffers["panel_bitmap"].stream(self.at, "vector<1xi64>")
        return self.kernel.value(f"vector.extract {bits}[0] : i64 from vector<1xi64>")

    def half(self, number: int) -> str:
        """The lower or the upper ones, an i32; the lower asks for memory further on."""
        panel, word, vector = self.at
        if number == 0:
            self.buffers["panel_bitmap"].ask(self.at)
        place = self.kernel.add(self.kernel.times(vector, 2), number)
        return self.buffers[HALVES].load_scalar([panel, word, place])


def widened(kernel: Kernel, buffer: Buffer, at: Sequence[str], element: str) -> str:
    """A vector of floats of any type, as float32."""
    narrow = buffer.stream(at, f"vector<{LANES}x{element}>")
    if element == "f32":
        return narrow
    return kernel.value(f"arith.extf {narrow} : vector<{LANES}x{element}> to {FLOATS}")
