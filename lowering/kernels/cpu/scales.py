"""Scales of a weight's codes in a kernel: floats, or numbers of 8 bits that become floats when they
are read, exactly; and one float32 over all of them.  Or codes on grids of their own.
"""

from collections.abc import Sequence

import torch

from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, WORDS, Kernel
from trinity.lowering.kernels.cpu.levels import E4M3, HALF_FLOATS, HALVES, OF_HALF
from trinity.lowering.kernels.cpu.panels import NIBBLE
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored, widened
from trinity.lowering.mlir.builder import MLIR_TYPES
from trinity.methods.formats.nested_grid import SECOND
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


class NestedScales:
    """Those of a weight whose scales are codes: scales and zero points, both floats."""

    def __init__(self, kernel: Kernel, stored: Stored) -> None:
        self.kernel, self.buffers = kernel, stored.buffers
        nested = stored.panels.format.nested
        assert nested
        self.element = MLIR_TYPES[getattr(torch, nested.dtype)]

    def at(self, place: Sequence[str]) -> str:
        """The scale of 16 outputs' codes.  place: panel, group, first output in the panel"""
        return self._decoded(place, 0, self._codes(place, ask=True))

    def zero(self, place: Sequence[str]) -> str:
        """Their zero point, which is no integer.  place: as of `at`"""
        codes, by = self._codes(place, ask=False), self.kernel.constant(NIBBLE, WORDS)
        return self._decoded(place, 2, self.kernel.value(f"arith.shrui {codes}, {by} : {WORDS}"))

    def _codes(self, place: Sequence[str], ask: bool) -> str:
        """Both codes of 16 outputs, as words.  ask: for memory further on"""
        kernel, buffer, kind = self.kernel, self.buffers["panel_scale_codes"], f"vector<{LANES}xi8>"
        found = buffer.stream(place, kind) if ask else buffer.load(place, kind)
        return kernel.value(f"arith.extui {found} : {kind} to {WORDS}")

    def _decoded(self, place: Sequence[str], first: int, codes: str) -> str:
        """`low + step * code`.  first: where low is, of the numbers that 16 outputs share"""
        kernel, (panel, group, column) = self.kernel, place
        vector = kernel.value(f"arith.divui {column}, {kernel.constant(LANES)} : index")
        low, step = self._shared([panel, group, vector, kernel.constant(0)], first)
        codes = kernel.value(
            f"arith.andi {codes}, {kernel.constant(2**NIBBLE - 1, WORDS)} : {WORDS}"
        )
        codes = kernel.value(f"arith.uitofp {codes} : {WORDS} to {FLOATS}")
        return kernel.value(f"vector.fma {codes}, {step}, {low} : {FLOATS}")

    def _shared(self, at: Sequence[str], first: int) -> list[str]:
        """Two numbers of a grid, in every lane."""
        kernel, kind, wide = self.kernel, f"vector<4x{self.element}>", "vector<4xf32>"
        assert len(SECOND) == 4
        found = self.buffers["panel_grids"].load(at, kind)
        if self.element != "f32":
            found = kernel.value(f"arith.extf {found} : {kind} to {wide}")
        return [
            kernel.splat(kernel.value(f"vector.extract {found}[{i}] : f32 from {wide}"), FLOATS)
            for i in (first, first + 1)
        ]
