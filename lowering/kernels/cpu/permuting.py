"""Floats of N:M, half of each word kept, times the activations that their positions pick (AVX2).

The same idea as in `picking.py`: a processor without `vexpandps` takes longer to put kept floats
into their places than to multiply them.  `vpermilps` picks, for 8 outputs at once, each one's own
of four activations; its index is two bits, and the bits above them do not count.  A word of four
inputs and 16 outputs is, for the first and the second kept float,

    sums[16] += floats * vpermilps(activations[4], places >> 4 lane + 0 or 2)

half the products of dense floats.  Eight outputs' places are one word of memory, in all lanes of
one load.
"""

from collections.abc import Sequence

from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, WORDS, Buffer, Kernel, joined
from trinity.lowering.kernels.cpu.panel_geometry import WORD
from trinity.lowering.kernels.cpu.placing import HALF_WORDS
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored, widened
from trinity.lowering.mlir.builder import MLIR_TYPES

KEPT = 2  # of a word
FOUR = "vector<4xf32>"


class PermutedTerm:
    """`x [M, stride]`, its first `in` columns, times kept floats."""

    def __init__(
        self, kernel: Kernel, stored: Stored, x: Buffer, instructions: Instructions
    ) -> None:
        """x: float32 [M, stride]"""
        assert instructions.permute
        self.kernel, self.panels, self.x = kernel, stored.panels, x
        self.permute = instructions.permute
        # Beside sums there are the activations, places, weights, and how far places are shifted.
        self.room = instructions.registers // 2
        self.values, self.picks = (stored.buffers[f"panel_{of}"] for of in ("values", "picks"))
        self.element = MLIR_TYPES[stored.panels.own_shapes()["panel_values"][1]]

    def added(
        self, panel: str, rows: Sequence[str], vectors: Sequence[str], starts: Sequence[str]
    ) -> list[str]:
        """See `Term`."""
        kernel = self.kernel
        shifts = [
            kernel.numbers([4 * (lane % 8) + 2 * i for lane in range(LANES)], "i32")
            for i in range(KEPT)
        ]
        columns = [kernel.times(vector, LANES) for vector in vectors]
        words = self.panels.format.shape[1] // WORD
        with kernel.loop(words, 1, [(start, FLOATS) for start in starts]) as loop:
            first = kernel.times(loop.index, WORD)
            inputs = [self.x.load([row, first], FOUR) for row in rows]
            sums = list(loop.carried)
            for v, (vector, column) in enumerate(zip(vectors, columns, strict=True)):
                places = self._places([panel, loop.index, vector])
                for i, shift in enumerate(shifts):
                    own = kernel.value(f"arith.shrui {places}, {shift} : {WORDS}")
                    at = [panel, kernel.add(kernel.times(loop.index, KEPT), i), column]
                    weights = widened(kernel, self.values, at, self.element)
                    for r, four in enumerate(inputs):
                        picked, place = self.permute(kernel, four, own), r * len(vectors) + v
                        sums[place] = kernel.value(
                            f"vector.fma {weights}, {picked}, {sums[place]} : {FLOATS}"
                        )
            loop.yielded = sums
        return loop.results

    def _places(self, at: Sequence[str]) -> str:
        """Of a word vector: in each lane those of eight outputs, the lane's own among them."""
        (panel, word, vector), kernel = at, self.kernel
        first = kernel.times(vector, 2)
        halves = [self.picks.load_scalar([panel, word, kernel.add(first, i)]) for i in (0, 1)]
        return joined(kernel, [kernel.splat(half, HALF_WORDS) for half in halves], "i32", 8)
