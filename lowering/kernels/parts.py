"""The parts of a stored weight in a kernel's memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trinity.lowering.builder import MLIR_TYPES
from trinity.lowering.kernels.emit import FLOATS, LANES, Buffer, Kernel
from trinity.lowering.kernels.panels import Panels
from trinity.lowering.kernels.stored import FactorName


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


def bitmap_word(kernel: Kernel, buffers: Mapping[str, Buffer], at: Sequence[str]) -> str:
    """One entry of `panel_bitmap`."""
    bits = buffers["panel_bitmap"].stream(at, "vector<1xi64>")
    return kernel.value(f"vector.extract {bits}[0] : i64 from vector<1xi64>")


def widened(kernel: Kernel, buffer: Buffer, at: Sequence[str], element: str) -> str:
    """A vector of floats of any type, as float32."""
    narrow = buffer.stream(at, f"vector<{LANES}x{element}>")
    if element == "f32":
        return narrow
    return kernel.value(f"arith.extf {narrow} : vector<{LANES}x{element}> to {FLOATS}")
