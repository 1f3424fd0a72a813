"""What codes of a table are as floats: exactly their levels.

A table of 16 is looked up (`looking_up.py`).  E4M3, with 256, is moved into the bits of a float16,
whose exponent has one bit more and is biased by 8 more; a processor widens that exactly, numbers
below the normal ones included.  Without the factor 2^8, which a scale takes up.
"""

from struct import pack, unpack

from trinity.lowering.kernels.cpu.integers import SHUFFLED
from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, WORDS, Kernel
from trinity.lowering.kernels.cpu.looking_up import LookUp
from trinity.methods.formats.level_tables import levels

E4M3 = "e4m3"
OF_HALF = 256.0  # how much less a float16 with the bits of an E4M3 is
HALVES, HALF_FLOATS = f"vector<{LANES}xi16>", f"vector<{LANES}xf16>"


class Levels:
    """Levels of one table.  unit: what they are to be multiplied with"""

    def __init__(self, kernel: Kernel, table: str, look_up: LookUp) -> None:
        self.kernel, self.look_up = kernel, look_up
        found = levels(table).tolist()
        assert len(found) <= SHUFFLED or table == E4M3
        self.bits = unpack(f"{len(found)}i", pack(f"{len(found)}f", *found))
        self.unit = OF_HALF if table == E4M3 else 1.0

    def of(self, codes: str) -> str:
        """16 floats.  codes: 16 words"""
        if len(self.bits) > SHUFFLED:
            return halves(self.kernel, codes)
        return self.look_up(self.kernel, self.bits, codes)


def halves(kernel: Kernel, codes: str) -> str:
    """E4M3 of any sign over `OF_HALF`.  codes: 16 words"""
    top = kernel.value(f"arith.shli {codes}, {kernel.constant(24, WORDS)} : {WORDS}")
    moved = kernel.value(f"arith.shrsi {top}, {kernel.constant(17, WORDS)} : {WORDS}")
    kept = kernel.value(f"arith.andi {moved}, {kernel.constant(0xBF80, WORDS)} : {WORDS}")
    both, even = f"vector<{2 * LANES}xf16>", list(range(0, 2 * LANES, 2))
    # Not by `arith.trunci`: IREE 3.13 merges that with the bitcast into one that does not verify.
    half = kernel.bitcast(kept, WORDS, both)
    half = kernel.value(f"vector.shuffle {half}, {half} {even} : {both}, {both}")
    return kernel.value(f"arith.extf {half} : {HALF_FLOATS} to {FLOATS}")
