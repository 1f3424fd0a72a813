"""Outliers in a sum of products: each output's few entries, times the inputs that they name.

A lane is an output, so one vector of entries has 16 columns, and 16 inputs are loaded for it one by
one: dear beside a product of codes, which is why a term of outliers pays where they are few (a
hundredth of the inputs).  Not by `vector.gather`, which IREE 3.13 does not bring to LLVM.
"""

from collections.abc import Sequence

from trinity.lowering.kernels.cpu.instructions import Instructions, room_of
from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, Buffer, Kernel
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored, widened
from trinity.lowering.mlir.builder import MLIR_TYPES


class OutlierTerm:
    """`x [M, stride]` times entries stored by index."""

    def __init__(
        self, kernel: Kernel, stored: Stored, x: Buffer, instructions: Instructions
    ) -> None:
        """x: float32 [M, stride], rounded if the format's inputs are"""
        self.kernel, self.panels, self.x = kernel, stored.panels, x
        self.buffers, self.room = stored.buffers, room_of(instructions)
        (_, self.entries, _), columns = self.panels.own_shapes()["panel_outlier_columns"]
        self.index = MLIR_TYPES[columns]
        self.element = MLIR_TYPES[self.panels.own_shapes()["panel_outlier_values"][1]]

    def added(
        self, panel: str, rows: Sequence[str], vectors: Sequence[str], starts: Sequence[str]
    ) -> list[str]:
        """See `Term`."""
        kernel = self.kernel
        lanes = [kernel.times(vector, LANES) for vector in vectors]
        with kernel.loop(self.entries, 1, [(start, FLOATS) for start in starts]) as loop:
            places = [[panel, loop.index, lane] for lane in lanes]
            columns = [self._columns(place) for place in places]
            values = [
                widened(kernel, self.buffers["panel_outlier_values"], place, self.element)
                for place in places
            ]
            for r, row in enumerate(rows):
                for v, (own, value) in enumerate(zip(columns, values, strict=True)):
                    before = loop.carried[r * len(values) + v]
                    x = self._inputs(row, own)
                    loop.yielded.append(
                        kernel.value(f"vector.fma {value}, {x}, {before} : {FLOATS}")
                    )
        return loop.results

    def _columns(self, place: Sequence[str]) -> list[str]:
        """Which input each of 16 outputs asks for.  place: panel, entry, first output"""
        panel, entry, first = place
        found = []
        for lane in range(LANES):
            at = [panel, entry, self.kernel.add(first, lane)]
            column = self.buffers["panel_outlier_columns"].load_scalar(at)
            found.append(self.kernel.value(f"arith.index_cast {column} : {self.index} to index"))
        return found

    def _inputs(self, row: str, columns: Sequence[str]) -> str:
        """Those inputs of a row, as a vector."""
        found = self.kernel.constant("0.0", FLOATS)
        for lane, column in enumerate(columns):
            one = self.x.load_scalar([row, column])
            found = self.kernel.value(f"vector.insert {one}, {found} [{lane}] : f32 into {FLOATS}")
        return found
