"""Activations as integers of 24 bits, in three base-256 digits, for integer dot products.

A block of activations becomes `x = step * q` with integers `q` of 24 bits, rounded once, to 2^-24
of the block's largest activation, which is what float32 would round every partial sum to.  `q` is
three signed digits; a product with codes is an exact integer dot product for each of them.

Inputs that a model declares of 8 bits are one digit.
"""

from collections.abc import Sequence

from trinity.lowering.kernels.emit import FLOATS, LANES, WORDS, Buffer, Kernel
from trinity.lowering.kernels.panels import WORD
from trinity.methods.formats.inputs import INT8_LARGEST

EXACT = 3  # digits that are as accurate as float32
LARGEST = 127 * 65536  # of a quantized activation, so that rounding cannot carry past digit 127
CHUNK = 16  # inputs whose digits stand together: 4 words a digit

Scaled = tuple[str, str]
"""The operation and the other operand that make inputs the integers, not yet rounded."""


def block_words(block: int, digits: int) -> int:
    """Words that hold the digits of a block, the sum of each, and the step."""
    return (block // CHUNK * WORD + 1) * digits + 1


def prepare(rows: int, blocks: int, block: int) -> Kernel:
    """`[rows, blocks, block] f32 -> [rows, blocks, words] i32`: digits, their sums, the step.

    One workgroup a row and block.
    """
    kernel = Kernel(f"prepare_{rows}x{blocks}x{block}")
    x = kernel.binding((rows, blocks, block), "f32")
    out = kernel.output((rows, blocks, block_words(block, EXACT)), "i32")
    write_exact(kernel, (x, out), (kernel.workgroup(1), kernel.workgroup(0)), block)
    return kernel


def write_exact(
    kernel: Kernel, buffers: tuple[Buffer, Buffer], here: tuple[str, str], block: int
) -> None:
    """One block of `prepare`.  buffers: floats, words   here: row and block"""
    x, _ = buffers
    with kernel.loop(block, LANES, [(kernel.constant(0, WORDS), WORDS)]) as loop:
        loop.yielded = [larger(kernel, loop.carried[0], x.load([*here, loop.index], FLOATS))]
    scaled, step = exact_step(kernel, largest_of(kernel, loop.results[0]))
    _write(kernel, buffers, here, (block, EXACT), scaled, step)


def exact_step(kernel: Kernel, largest: str) -> tuple[Scaled, str]:
    """What makes integers of a block whose largest magnitude is known, and its step."""
    smallest = kernel.constant("1.0e-30", "f32")  # a block of zeros has a step too
    largest = kernel.value(f"arith.maximumf {largest}, {smallest} : f32")
    limit = kernel.constant(f"{float(LARGEST)}", "f32")
    step = kernel.value(f"arith.divf {largest}, {limit} : f32")
    inverse = kernel.splat(kernel.value(f"arith.divf {limit}, {largest} : f32"), FLOATS)
    return ("arith.mulf", inverse), step


def prepare_rounded(rows: int, blocks: int, block: int, group_blocks: int) -> Kernel:
    """`[rows, blocks, block] f32 -> [rows, blocks, words] i32`: inputs that the model declares of 8
    bits, as one digit, its sum, the step.

    group_blocks: blocks that share a step, the largest of their inputs over 127
    """
    kernel = Kernel(f"prepare_rounded_{rows}x{blocks}x{block}_{group_blocks}")
    x = kernel.binding((rows, blocks, block), "f32")
    out = kernel.output((rows, blocks, block_words(block, 1)), "i32")
    here = kernel.workgroup(1), kernel.workgroup(0)
    write_rounded(kernel, (x, out), here, block, group_blocks)
    return kernel


def write_rounded(
    kernel: Kernel,
    buffers: tuple[Buffer, Buffer],
    here: tuple[str, str],
    block: int,
    group_blocks: int,
) -> None:
    """One block of `prepare_rounded`.  buffers: floats, words   here: row and block

    The same divisions and roundings as `InputFormat.rounded`, so that no code differs.
    """
    (x, _), (row, own) = buffers, here
    by = kernel.constant(group_blocks)
    first = kernel.times(kernel.value(f"arith.divui {own}, {by} : index"), group_blocks)
    with kernel.loop(group_blocks, 1, [(kernel.constant(0, WORDS), WORDS)]) as group:
        other = kernel.value(f"arith.addi {first}, {group.index} : index")
        with kernel.loop(block, LANES, [(group.carried[0], WORDS)]) as loop:
            values = x.load([row, other, loop.index], FLOATS)
            loop.yielded = [larger(kernel, loop.carried[0], values)]
        group.yielded = loop.results
    scaled, step = rounded_step(kernel, largest_of(kernel, group.results[0]))
    _write(kernel, buffers, here, (block, 1), scaled, step)


def rounded_step(kernel: Kernel, largest: str) -> tuple[Scaled, str]:
    """As `exact_step`, for inputs declared of 8 bits."""
    limit = kernel.constant(f"{float(INT8_LARGEST)}", "f32")
    step = kernel.value(f"arith.divf {largest}, {limit} : f32")
    none = kernel.constant("0.0", "f32")
    some = kernel.value(f"arith.cmpf ogt, {largest}, {none} : f32")
    step = kernel.value(f"arith.select {some}, {step}, {kernel.constant('1.0', 'f32')} : f32")
    return ("arith.divf", kernel.splat(step, FLOATS)), step


def larger(kernel: Kernel, largest: str, values: str) -> str:
    """The larger magnitudes, as words: bits of floats without a sign are in the floats' order."""
    bits = kernel.bitcast(values, FLOATS, WORDS)
    bits = kernel.value(f"arith.andi {bits}, {kernel.constant(0x7FFFFFFF, WORDS)} : {WORDS}")
    return kernel.value(f"arith.maxsi {largest}, {bits} : {WORDS}")


def largest_of(kernel: Kernel, magnitudes: str) -> str:
    """The largest of `larger`'s lanes, f32."""
    largest = kernel.value(f"vector.reduction <maxsi>, {magnitudes} : {WORDS} into i32")
    return kernel.value(f"arith.bitcast {largest} : i32 to f32")


def _write(
    kernel: Kernel,
    buffers: tuple[Buffer, Buffer],
    here: Sequence[str],
    sizes: tuple[int, int],
    scaled: Scaled,
    step: str,
) -> None:
    """The digits of one block, their sums, and the step.

    buffers: floats, words   here: row and block   sizes: inputs, digits
    """
    (x, out), (block, digits) = buffers, sizes
    words, zeros = block_words(block, digits), kernel.constant(0, WORDS)
    with kernel.loop(block, LANES, [(zeros, WORDS)] * digits) as loop:
        values = x.load([*here, loop.index], FLOATS)
        chunk = kernel.value(f"arith.divui {loop.index}, {kernel.constant(CHUNK)} : index")
        place = kernel.times(chunk, WORD * digits)
        for i, digit in enumerate(split(kernel, values, scaled, digits)):
            narrow = in_bytes(kernel, digit)
            out.store(narrow, [*here, kernel.add(place, WORD * i)], "vector<4xi32>")
            total = kernel.value(f"arith.addi {loop.carried[i]}, {digit} : {WORDS}")
            loop.yielded.append(total)
    for i in range(digits):
        total = kernel.value(f"vector.reduction <add>, {loop.results[i]} : {WORDS} into i32")
        out.store_scalar(total, [*here, kernel.constant(words - digits - 1 + i)])
    step = kernel.value(f"arith.bitcast {step} : f32 to i32")
    out.store_scalar(step, [*here, kernel.constant(words - 1)])


def split(kernel: Kernel, values: str, scaled: Scaled, digits: int) -> list[str]:
    """The digits of a vector of inputs, the lowest first, as words."""
    values = kernel.value(f"{scaled[0]} {values}, {scaled[1]} : {FLOATS}")
    # By the intrinsic: the compiler writes out roundings and the narrowing of words in some twenty
    # instructions each.
    every, none = kernel.constant(-1, "i16"), kernel.constant(0, WORDS)
    rest = kernel.value(
        f'llvm.call_intrinsic "llvm.x86.avx512.mask.cvtps2dq.512"({values}, {none}, {every}, '
        f"{kernel.constant(4, 'i32')}) : ({FLOATS}, {WORDS}, i16, i32) -> {WORDS}"
    )
    found = []
    for _ in range(digits - 1):
        digit, rest = _low_digit(kernel, rest)
        found.append(digit)
    return [*found, rest]


def in_bytes(kernel: Kernel, digit: str) -> str:
    """The low bytes of 16 words, `vector<4xi32>`."""
    kind = "vector<16xi8>"
    every, none = kernel.constant(-1, "i16"), kernel.constant(0, kind)
    narrow = kernel.value(
        f'llvm.call_intrinsic "llvm.x86.avx512.mask.pmov.db.512"({digit}, {none}, {every})'
        f" : ({WORDS}, {kind}, i16) -> {kind}"
    )
    return kernel.bitcast(narrow, kind, "vector<4xi32>")


def _low_digit(kernel: Kernel, value: str) -> tuple[str, str]:
    """The signed lowest base-256 digit, and what is left, divided by 256."""
    by = kernel.constant(24, WORDS)
    digit = kernel.value(f"arith.shli {value}, {by} : {WORDS}")
    digit = kernel.value(f"arith.shrsi {digit}, {by} : {WORDS}")
    rest = kernel.value(f"arith.subi {value}, {digit} : {WORDS}")
    return digit, kernel.value(f"arith.shrsi {rest}, {kernel.constant(8, WORDS)} : {WORDS}")
