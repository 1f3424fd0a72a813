"""Scales of a weight's codes in a kernel: floats, or numbers of 8 bits that become floats when they
are read, exactly; and one float32 over all of them.
"""

from collections.abc import Sequence

import torch

from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, WORDS, Kernel
from trinity.lowering.kernels.cpu.levels import E4M3, HALF_FLOATS, HALVES, OF_HALF
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored, widened
from trinity.lowering.mlir.builder import MLIR_TYPES
from trinity.methods.formats.scales import EIGHT_BITS

LEAST_E8M0 = 0x00400000  # float32's bits of 2^-127, which byte 0 stands for


class Scales:
    """Those of one weight."""

    def __init__(self, kernel: Kernel, stored: Stored, unit: float) -> None:
        """unit: what values are to be multiplied with, beside their scale"""
        self.kernel, self.buffers = kernel, stored.buffers
        values = stored.panels.format.coded
        assert values
        self.short = EIGHT_BITS.get(getattr(torch, values.scale_dtype))
        self.element = MLIR_TYPES[stored.panels.own_shapes()["panel_scale"][1]]
        self.outer = self._outer(unit * OF_HALF if self.short == E4M3 else unit)

    def at(self, place: Sequence[str]) -> str:
        """What a step of 16 outputs' codes is.  place: panel, group, first output in the panel"""
        kernel, buffer = self.kernel, self.buffers["panel_scale"]
        if self.short:
            found = self._of_bytes(buffer.stream(place, f"vector<{LANES}xi8>"))
        else:
            found = widened(kernel, buffer, place, self.element)
        if self.outer is None:
            return found
        return kernel.value(f"arith.mulf {found}, {self.outer} : {FLOATS}")

    def _outer(self, unit: float) -> str | None:
        """What multiplies all scales; None is 1."""
        kernel = self.kernel
        if "panel_outer_scale" not in self.buffers:
            return None if unit == 1 else kernel.constant(unit, FLOATS)
        zero = kernel.constant(0)
        outer = self.buffers["panel_outer_scale"].load_scalar([zero, zero])
        outer = kernel.value(f"arith.mulf {outer}, {kernel.constant(unit, 'f32')} : f32")
        return kernel.splat(outer, FLOATS)

    def _of_bytes(self, stored: str) -> str:
        """16 scales of 8 bits, all positive, as floats; E4M3 over `OF_HALF`."""
        kernel = self.kernel
        if self.short == E4M3:
            wide = kernel.value(f"arith.extui {stored} : vector<{LANES}xi8> to {HALVES}")
            half = kernel.value(f"arith.shli {wide}, {kernel.constant(7, HALVES)} : {HALVES}")
            half = kernel.bitcast(half, HALVES, HALF_FLOATS)
            return kernel.value(f"arith.extf {half} : {HALF_FLOATS} to {FLOATS}")
        wide = kernel.value(f"arith.extui {stored} : vector<{LANES}xi8> to {WORDS}")
        bits = kernel.value(f"arith.shli {wide}, {kernel.constant(23, WORDS)} : {WORDS}")
        bits = kernel.value(f"arith.maxui {bits}, {kernel.constant(LEAST_E8M0, WORDS)} : {WORDS}")
        return kernel.bitcast(bits, WORDS, FLOATS)
