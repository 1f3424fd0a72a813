"""Codes of N:M, half of each word kept, times the activations that their positions pick (AVX2).

Putting kept codes into their places takes a processor without `vpexpandb` longer than multiplying
them.  Activations can be moved instead: `vpshufb` picks, for the two kept codes of a word, two of
its four inputs' digits, in one instruction for 16 outputs, and half as many products are left.  A
word vector of four inputs and 16 outputs is

    sums[16 halfwords] += vpmaddubsw(vpshufb(digits, positions), codes)        for every digit

**Zero points.**  What is not kept would have to be left out of the sum of digits, by output.  So
codes are made signed first (their zero point is subtracted), and digits unsigned (128 is added),
as `vpmaddubsw` takes them; 128 times the sum of codes comes off again, which depends on no input.

**Halfwords.**  Two products of a digit, 255 at most, and a signed code of 4 bits, -8 at most, are
4,080: eight fit.  With a zero point of its own a code may be 15, and four fit; of E2M1's 12 half
steps five.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trinity.lowering.kernels.cpu.code_terms import CodesAt, NarrowDigitTerm
from trinity.lowering.kernels.cpu.digits import ZERO_DIGIT
from trinity.lowering.kernels.cpu.dots import PAIRS, Dots, products_of_pairs
from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import LANES, WORDS, Buffer, Kernel
from trinity.lowering.kernels.cpu.panel_geometry import HALF, WORD
from trinity.lowering.kernels.cpu.placing import HALF_BYTES, HALF_WORDS, shuffled
from trinity.lowering.kernels.cpu.unpack import Chunk
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored

LARGEST_DIGIT = 255


class _Kept(NamedTuple):
    """Kept codes of a word vector less their zero points, and their positions: 32 bytes each."""

    codes: str
    positions: str


class PickedTerm(NarrowDigitTerm):
    """Activations in unsigned digits, times kept codes of at most 4 bits."""

    def __init__(
        self, kernel: Kernel, stored: Stored, x: Buffer, instructions: Instructions, dots: Dots
    ) -> None:
        """x: as `prepared` says, its digits unsigned"""
        super().__init__(kernel, stored, x, instructions, dots)
        self.less = kernel.scratch((LANES,), "i32")  # of a block that is unpacked for many rows

    def _sums(self, at: CodesAt, row: str, codes: Buffer | None) -> list[str]:
        """See `NarrowDigitTerm`.  Codes are added as they are unpacked, or were before."""
        kernel, span = self.kernel, self._span()
        carried = [(kernel.constant(0, WORDS), WORDS)] * self.digits
        carried += [] if codes else [(kernel.constant(0, PAIRS), PAIRS)]
        with kernel.loop(self.chunks // span, 1, carried) as loop:
            partial: list[str] = []
            seen: list[str] = []
            for i in range(span):
                chunk = kernel.add(kernel.times(loop.index, span), i)
                words = self._stored(chunk) if codes else self._picked(at, chunk)
                for word, kept in enumerate(words):
                    found = self._products((row, at.block, self.place(chunk, word)), kept)
                    partial = _sum(kernel, partial, found, PAIRS)
                    seen = _sum(kernel, seen, [kept.codes], HALF_BYTES)
            wide = [kernel.value(f"arith.extsi {of} : {PAIRS} to {WORDS}") for of in partial]
            loop.yielded = _sum(kernel, loop.carried[: self.digits], wide, WORDS)
            if codes is None:
                pairs = [_pairs(kernel, seen[0])]
                loop.yielded += _sum(kernel, loop.carried[self.digits :], pairs, PAIRS)
        if codes:
            less = self.less.load([kernel.constant(0)], WORDS)
        else:
            less = self._excess(loop.results[self.digits])
        sums = loop.results[: self.digits]
        return self.as_floats([kernel.value(f"arith.subi {of}, {less} : {WORDS}") for of in sums])

    def _unpack(self, at: CodesAt) -> None:
        """See `NarrowDigitTerm`: codes and behind them positions, and what is to be subtracted."""
        kernel, zero, none = self.kernel, self.kernel.constant(0), self.kernel.constant(0, PAIRS)
        with kernel.loop(self.chunks, 1, [(none, PAIRS)]) as loop:
            first = kernel.times(loop.index, self.panels.chunk)
            seen: list[str] = []
            for word, kept in enumerate(self._picked(at, loop.index)):
                place = kernel.add(first, word)
                self.codes.store(kept.codes, [place, zero], HALF_BYTES)
                self.codes.store(kept.positions, [place, kernel.constant(HALF)], HALF_BYTES)
                seen = _sum(kernel, seen, [kept.codes], HALF_BYTES)
            loop.yielded = _sum(kernel, loop.carried, [_pairs(kernel, seen[0])], PAIRS)
        self.less.store(self._excess(loop.results[0]), [zero], WORDS)

    def _products(self, at: tuple[str, str, str], kept: _Kept) -> list[str]:
        """Of a word vector with each of a row's digits.  at: row, block and place"""
        kernel, (row, block, place), found = self.kernel, at, []
        for i in range(self.digits):
            word = self.buffers["x"].load_scalar([row, block, kernel.add(place, WORD * i)])
            x = kernel.bitcast(kernel.splat(word, HALF_WORDS), HALF_WORDS, HALF_BYTES)
            picked = shuffled(kernel, x, kept.positions)
            found.append(products_of_pairs(kernel, picked, kept.codes))
        return found

    def _picked(self, at: CodesAt, chunk: str) -> Iterator[_Kept]:
        """What is kept of every word vector of a chunk."""
        kernel = self.kernel
        index = kernel.add(kernel.times(at.block, self.chunks), chunk)
        read = Chunk(at.panel, index, [at.vector], [at.zero])
        for codes, positions in self.unpacker.picked(read):
            signed = kernel.value(f"arith.subi {codes}, {self._zeros(at)} : {HALF_BYTES}")
            yield _Kept(signed, positions)

    def _stored(self, chunk: str) -> Iterator[_Kept]:
        """The same, from where `_unpack` left it."""
        kernel, first = self.kernel, self.kernel.times(chunk, self.panels.chunk)
        for word in range(self.panels.chunk):
            place = kernel.add(first, word)
            codes, positions = (
                self.codes.load([place, kernel.constant(start)], HALF_BYTES) for start in (0, HALF)
            )
            yield _Kept(codes, positions)

    def _zeros(self, at: CodesAt) -> str:
        """The zero point of each of 32 codes, two an output."""
        kernel, own = self.kernel, self.integers.zero
        if own is not None:
            return kernel.constant(own, HALF_BYTES)
        narrow = kernel.value(f"arith.trunci {at.zero} : {WORDS} to {PAIRS}")
        both = kernel.value(f"arith.muli {narrow}, {kernel.constant(0x0101, PAIRS)} : {PAIRS}")
        return kernel.bitcast(both, PAIRS, HALF_BYTES)

    def _excess(self, total: str) -> str:
        """What digits' sums have too much: `ZERO_DIGIT` times the sum of codes, as words."""
        kernel = self.kernel
        wide = kernel.value(f"arith.extsi {total} : {PAIRS} to {WORDS}")
        return kernel.value(f"arith.muli {wide}, {kernel.constant(ZERO_DIGIT, WORDS)} : {WORDS}")

    def _span(self) -> int:
        """Chunks whose products fit halfwords, and whose codes' sum fits bytes."""
        most = (2**15 - 1) // (2 * LARGEST_DIGIT * self.integers.furthest) // self.panels.chunk
        return max(n for n in range(1, most + 1) if self.chunks % n == 0)


def _sum(kernel: Kernel, before: Sequence[str], found: Sequence[str], kind: str) -> list[str]:
    """Of vectors of integers, one by one; before: none yet, or as many"""
    if not before:
        return list(found)
    pairs = zip(before, found, strict=True)
    return [kernel.value(f"arith.addi {one}, {other} : {kind}") for one, other in pairs]


def _pairs(kernel: Kernel, codes: str) -> str:
    """Sums of two signed bytes, as halfwords."""
    return products_of_pairs(kernel, kernel.constant(1, HALF_BYTES), codes)
