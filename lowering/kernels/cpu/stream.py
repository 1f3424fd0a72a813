"""Kept entries one behind another, put into their places by a bitmap.

`placing.py` has what a processor does that with.
"""

from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import BYTES, FLOATS, LANES, Kernel
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored
from trinity.lowering.mlir.builder import MLIR_TYPES


class Stream:
    """Kept entries one behind another, and how they come to their places."""

    def __init__(self, kernel: Kernel, stored: Stored, instructions: Instructions) -> None:
        self.kernel, self.panels = kernel, stored.panels
        self.buffers, self.entries = stored.buffers, stored.buffers["panel_stream"]
        self.element = MLIR_TYPES[self.panels.own_shapes()["panel_stream"][1]]
        kind = BYTES if self.panels.codes else FLOATS
        self.in_place = instructions.expander(kernel, kind)

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
        return self.in_place(values, none, bits), kernel.add(position, count)

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
        return self.in_place(values, none, bits), after

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
