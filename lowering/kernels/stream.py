"""Kept entries one behind another, put into their places by a bitmap.

Where a processor does that itself (AVX-512 and VBMI2, *native*), one instruction does; elsewhere a
loop.
"""

from trinity.lowering.builder import MLIR_TYPES
from trinity.lowering.kernels.emit import FLOATS, LANES, Kernel
from trinity.lowering.kernels.parts import Stored

BYTES = "vector<64xi8>"


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
