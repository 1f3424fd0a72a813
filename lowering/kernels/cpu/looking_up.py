"""Tables of up to 16 entries in registers, looked up for all lanes at once, by what instructions a
processor has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, WORDS, Kernel, joined, parts
from trinity.lowering.kernels.cpu.placing import HALF_WORDS

EIGHT_FLOATS = "vector<8xf32>"


class LookUp(Protocol):
    """Of 16 floats those that 16 words say, which are below 16."""

    def __call__(self, kernel: Kernel, table: Sequence[int], index: str, /) -> str:
        """table: the floats' bits"""
        ...


@dataclass(frozen=True)
class Bytes:
    """Of 16 bytes those that bytes below 16 say, a register at a time.

    name: of the intrinsic, `vpshufb` or `tbl`   width: bytes of a register
    """

    name: str
    width: int

    def __call__(self, kernel: Kernel, table: Sequence[int], codes: str, size: int) -> str:
        """size: bytes of `codes`"""
        kind = f"vector<{self.width}xi8>"
        entries = kernel.numbers(list(table) * (self.width // len(table)), "i8")
        found = [
            kernel.value(
                f'llvm.call_intrinsic "{self.name}"({entries}, {part}) : ({kind}, {kind}) -> {kind}'
            )
            for part in parts(kernel, codes, f"vector<{size}xi8>", size // self.width)
        ]
        return joined(kernel, found, "i8", self.width)


def looked_up_avx512(kernel: Kernel, table: Sequence[int], index: str) -> str:
    """`vpermps` of 512 bits: all 16 in one instruction."""
    entries = kernel.bitcast(kernel.numbers(table, "i32"), WORDS, FLOATS)
    return kernel.value(
        f'llvm.call_intrinsic "llvm.x86.avx512.permvar.sf.512"({entries}, {index})'
        f" : ({FLOATS}, {WORDS}) -> {FLOATS}"
    )


def looked_up_avx2(kernel: Kernel, table: Sequence[int], index: str) -> str:
    """`vpermps` of 256 bits in either half of the table, and the one that bit 3 says."""
    low, high = (
        kernel.bitcast(kernel.numbers(of, "i32"), HALF_WORDS, EIGHT_FLOATS)
        for of in (table[:8], table[8:])
    )
    last, found = kernel.constant(7, HALF_WORDS), []
    for part in parts(kernel, index, WORDS, 2):
        lower, upper = (
            kernel.value(
                f'llvm.call_intrinsic "llvm.x86.avx2.permps"({entries}, {part})'
                f" : ({EIGHT_FLOATS}, {HALF_WORDS}) -> {EIGHT_FLOATS}"
            )
            for entries in (low, high)
        )
        far = kernel.value(f"arith.cmpi sgt, {part}, {last} : {HALF_WORDS}")
        found.append(
            kernel.value(f"arith.select {far}, {upper}, {lower} : vector<8xi1>, {EIGHT_FLOATS}")
        )
    return joined(kernel, found, "f32", 8)


def looked_up(kernel: Kernel, table: Sequence[int], index: str) -> str:
    """For any processor."""
    entries = [kernel.bitcast(kernel.constant(entry, WORDS), WORDS, FLOATS) for entry in table]
    return chosen(kernel, entries, index)


def chosen(kernel: Kernel, entries: Sequence[str], index: str) -> str:
    """Of vectors of 16 floats, in each lane the one whose vector the lane's word says: one of two
    by each bit of the word.
    """
    found = list(entries)
    bits, none = 0, kernel.constant(0, WORDS)
    while len(found) > 1:
        bit = kernel.value(f"arith.andi {index}, {kernel.constant(1 << bits, WORDS)} : {WORDS}")
        odd = kernel.value(f"arith.cmpi ne, {bit}, {none} : {WORDS}")
        found = [
            kernel.value(f"arith.select {odd}, {one}, {other} : vector<{LANES}xi1>, {FLOATS}")
            for other, one in zip(found[::2], found[1::2], strict=True)
        ]
        bits += 1
    return found[0]
