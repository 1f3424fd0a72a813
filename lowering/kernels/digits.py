"""Activations as integers of 24 bits, in three base-256 digits, for integer dot products.

A block of activations becomes `x = step * q` with integers `q` of 24 bits, rounded once, to 2^-24
of the block's largest activation, which is what float32 would round every partial sum to.  `q` is
three signed digits; a product with codes is an exact integer dot product for each of them.
"""

from trinity.lowering.kernels.emit import FLOATS, LANES, WORDS, Kernel
from trinity.lowering.kernels.panels import WORD

DIGITS = 3
LARGEST = 127 * 65536  # of a quantized activation, so that rounding cannot carry past digit 127
CHUNK = 16  # inputs whose digits stand together: 4 words a digit
SUMS = DIGITS + 1  # words at the end of a block: sums of its digits, and its step


def block_words(block: int) -> int:
    """Words that hold the digits of a block, their sums and the step."""
    return block // CHUNK * WORD * DIGITS + SUMS


def prepare(rows: int, blocks: int, block: int) -> Kernel:
    """`[rows, blocks, block] f32 -> [rows, blocks, words] i32`: digits, their sums, the step.

    One workgroup a row and block.
    """
    kernel = Kernel(f"prepare_{rows}x{blocks}x{block}")
    words = block_words(block)
    x = kernel.binding((rows, blocks, block), "f32")
    out = kernel.binding((rows, blocks, words), "i32")
    here = [kernel.workgroup(1), kernel.workgroup(0)]
    zeros, floats = kernel.constant(0, WORDS), kernel.constant("0.0", FLOATS)
    with kernel.loop(block, LANES, [(floats, FLOATS)]) as loop:
        part = kernel.value(f"math.absf {x.load([*here, loop.index], FLOATS)} : {FLOATS}")
        largest = kernel.value(f"arith.maximumf {loop.carried[0]}, {part} : {FLOATS}")
        loop.yielded = [largest]
    largest = kernel.value(f"vector.reduction <maximumf>, {loop.results[0]} : {FLOATS} into f32")
    smallest = kernel.constant("1.0e-30", "f32")  # a block of zeros has a step too
    largest = kernel.value(f"arith.maximumf {largest}, {smallest} : f32")
    limit = kernel.constant(f"{float(LARGEST)}", "f32")
    step = kernel.value(f"arith.divf {largest}, {limit} : f32")
    inverse = kernel.splat(kernel.value(f"arith.divf {limit}, {largest} : f32"), FLOATS)
    with kernel.loop(block, LANES, [(zeros, WORDS)] * DIGITS) as loop:
        values = x.load([*here, loop.index], FLOATS)
        values = kernel.value(f"arith.mulf {values}, {inverse} : {FLOATS}")
        values = kernel.value(f"math.roundeven {values} : {FLOATS}")
        rest = kernel.value(f"arith.fptosi {values} : {FLOATS} to {WORDS}")
        chunk = kernel.value(f"arith.divui {loop.index}, {kernel.constant(CHUNK)} : index")
        place = kernel.times(chunk, WORD * DIGITS)
        for i in range(DIGITS):
            digit, rest = _low_digit(kernel, rest) if i < DIGITS - 1 else (rest, rest)
            narrow = kernel.value(f"arith.trunci {digit} : {WORDS} to vector<16xi8>")
            narrow = kernel.bitcast(narrow, "vector<16xi8>", "vector<4xi32>")
            out.store(narrow, [*here, kernel.add(place, WORD * i)], "vector<4xi32>")
            total = kernel.value(f"arith.addi {loop.carried[i]}, {digit} : {WORDS}")
            loop.yielded.append(total)
    for i in range(DIGITS):
        total = kernel.value(f"vector.reduction <add>, {loop.results[i]} : {WORDS} into i32")
        out.store_scalar(total, [*here, kernel.constant(words - SUMS + i)])
    step = kernel.value(f"arith.bitcast {step} : f32 to i32")
    out.store_scalar(step, [*here, kernel.constant(words - 1)])
    return kernel


def _low_digit(kernel: Kernel, value: str) -> tuple[str, str]:
    """The signed lowest base-256 digit, and what is left, divided by 256."""
    by = kernel.constant(24, WORDS)
    digit = kernel.value(f"arith.shli {value}, {by} : {WORDS}")
    digit = kernel.value(f"arith.shrsi {digit}, {by} : {WORDS}")
    rest = kernel.value(f"arith.subi {value}, {digit} : {WORDS}")
    return digit, kernel.value(f"arith.shrsi {rest}, {kernel.constant(8, WORDS)} : {WORDS}")
