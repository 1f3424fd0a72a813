"""Exact products of codes and digits of activations, by what instructions a processor has."""

from dataclasses import dataclass
from typing import Protocol

from trinity.lowering.kernels.cpu.kernel_text import BYTES, WORDS, Kernel, joined, parts
from trinity.lowering.kernels.cpu.placing import HALF_BYTES

NIBBLE = 15  # the largest code of 4 bits
SIGNED = 127  # the largest byte that is the same with a sign; two products with digits fit 16 bits
Partial = tuple[str, ...]
"""Sums of one vector of outputs and one digit, in the registers of the processor."""


class Dots(Protocol):
    """Exact products of a word vector's codes, unsigned bytes, with four digits, signed ones: to
    each of 16 words, those of its four bytes are added.
    """

    @property
    def apart(self) -> bool:
        """Whether registers have room for the sums of one vector of outputs at a time."""
        ...

    def together(self, largest: int) -> int:
        """Word vectors whose products should, and may, be added before `ended`.

        largest: code
        """
        ...

    def below(self, largest: int) -> int:
        """How much less than a stored code the operands stand for."""
        ...

    def operands(self, kernel: Kernel, codes: str, largest: int) -> Partial:
        """Codes, 64 bytes, as `added` takes them."""
        ...

    def inputs(self, kernel: Kernel, word: str) -> str:
        """Four digits, an i32, as `added` takes them."""
        ...

    def begun(self, kernel: Kernel, sums: str) -> Partial:
        """Sums, 16 words, before the first `added`."""
        ...

    def added(self, kernel: Kernel, partial: Partial, codes: Partial, inputs: str) -> Partial:
        """With one word vector's products."""
        ...

    def ended(self, kernel: Kernel, sums: str, partial: Partial) -> str:
        """16 words again.  sums: those given to `begun`"""
        ...


@dataclass(frozen=True)
class WordDots:
    """One instruction, of the bytes and words of one register, does all.

    name: of the intrinsic   width: bytes of a register   apart: see `Dots`
    signed: whether it takes both operands as signed, so that codes above 127 lose 128 first
    """

    name: str
    width: int
    apart: bool
    signed: bool = False

    def together(self, largest: int) -> int:
        """See `Dots`."""
        return 8 if self.apart else 1

    def below(self, largest: int) -> int:
        """See `Dots`."""
        return 128 if self.signed and largest > SIGNED else 0

    def operands(self, kernel: Kernel, codes: str, largest: int) -> Partial:
        """See `Dots`."""
        if self.below(largest):
            top = kernel.constant(-128, BYTES)
            codes = kernel.value(f"arith.xori {codes}, {top} : {BYTES}")
        return parts(kernel, codes, BYTES, 64 // self.width)

    def inputs(self, kernel: Kernel, word: str) -> str:
        """See `Dots`."""
        return kernel.bitcast(kernel.splat(word, self._words), self._words, self._bytes)

    def begun(self, kernel: Kernel, sums: str) -> Partial:
        """See `Dots`."""
        return parts(kernel, sums, WORDS, 64 // self.width)

    def added(self, kernel: Kernel, partial: Partial, codes: Partial, inputs: str) -> Partial:
        """See `Dots`."""
        words, narrow = self._words, self._bytes
        return tuple(
            kernel.value(
                f'llvm.call_intrinsic "{self.name}"({sums}, {code}, {inputs})'
                f" : ({words}, {narrow}, {narrow}) -> {words}"
            )
            for sums, code in zip(partial, codes, strict=True)
        )

    def ended(self, kernel: Kernel, sums: str, partial: Partial) -> str:
        """See `Dots`."""
        return joined(kernel, partial, "i32", self.width // 4)

    @property
    def _words(self) -> str:
        return f"vector<{self.width // 4}xi32>"

    @property
    def _bytes(self) -> str:
        return f"vector<{self.width}xi8>"


class PairDots:
    """AVX2: `vpmaddubsw` adds two products in 16 bits, `vpmaddwd` two such sums in 32.

    Two products of a code of 4 bits are at most 15 * 128 * 2 = 3,840, so eight pairs may be added
    before they are widened; of E2M1's 24 half steps five.  Codes above 127 could saturate: their
    halves are multiplied apart, and `vpmaddwd` multiplies the upper ones' sums with 16.
    """

    apart = True

    def together(self, largest: int) -> int:
        """See `Dots`."""
        return (2**15 - 1) // (2 * 128 * (NIBBLE if largest > SIGNED else largest))

    def below(self, largest: int) -> int:
        """See `Dots`."""
        return 0

    def operands(self, kernel: Kernel, codes: str, largest: int) -> Partial:
        """See `Dots`."""
        if largest <= SIGNED:
            return parts(kernel, codes, BYTES, 2)
        mask, wide = kernel.constant(NIBBLE, BYTES), "vector<32xi16>"
        low = kernel.value(f"arith.andi {codes}, {mask} : {BYTES}")
        high = kernel.bitcast(codes, BYTES, wide)
        high = kernel.value(f"arith.shrui {high}, {kernel.constant(4, wide)} : {wide}")
        high = kernel.bitcast(high, wide, BYTES)
        high = kernel.value(f"arith.andi {high}, {mask} : {BYTES}")
        return parts(kernel, low, BYTES, 2) + parts(kernel, high, BYTES, 2)

    def inputs(self, kernel: Kernel, word: str) -> str:
        """See `Dots`."""
        return kernel.bitcast(kernel.splat(word, "vector<8xi32>"), "vector<8xi32>", HALF_BYTES)

    def begun(self, kernel: Kernel, sums: str) -> Partial:
        """See `Dots`."""
        return ()

    def added(self, kernel: Kernel, partial: Partial, codes: Partial, inputs: str) -> Partial:
        """See `Dots`."""
        found = [products_of_pairs(kernel, code, inputs) for code in codes]
        if not partial:
            return tuple(found)
        return tuple(
            kernel.value(f"arith.addi {before}, {pairs} : {PAIRS}")
            for before, pairs in zip(partial, found, strict=True)
        )

    def ended(self, kernel: Kernel, sums: str, partial: Partial) -> str:
        """See `Dots`."""
        found = [sums_of_pairs(kernel, pairs, 1) for pairs in partial[:2]]
        for i, pairs in enumerate(partial[2:]):
            upper = sums_of_pairs(kernel, pairs, NIBBLE + 1)
            found[i] = kernel.value(f"arith.addi {found[i]}, {upper} : vector<8xi32>")
        whole = joined(kernel, found, "i32", 8)
        return kernel.value(f"arith.addi {sums}, {whole} : {WORDS}")


PAIRS = "vector<16xi16>"


def products_of_pairs(kernel: Kernel, codes: str, inputs: str) -> str:
    """`vpmaddubsw`: products of unsigned and signed bytes, two added in each of 16 halfwords."""
    return kernel.value(
        f'llvm.call_intrinsic "llvm.x86.avx2.pmadd.ub.sw"({codes}, {inputs})'
        f" : ({HALF_BYTES}, {HALF_BYTES}) -> {PAIRS}"
    )


def sums_of_pairs(kernel: Kernel, pairs: str, weight: int) -> str:
    """`vpmaddwd`: halfwords times a number, two added in each of 8 words."""
    by = kernel.constant(weight, PAIRS)
    return kernel.value(
        f'llvm.call_intrinsic "llvm.x86.avx2.pmadd.wd"({pairs}, {by})'
        f" : ({PAIRS}, {PAIRS}) -> vector<8xi32>"
    )
