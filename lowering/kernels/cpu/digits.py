"""Activations as integers of 24 or 16 bits, in base-256 digits, for integer dot products.

A block of activations becomes `x = step * q` with integers `q` of 24 bits, rounded once, to 2^-24
of the block's largest activation, which is what float32 would round every partial sum to.  `q` is
three signed digits; a product with codes is an exact integer dot product for each of them.  Models
of half precision need two, 16 bits: no activation is further off than 2^-16 of the largest.

Inputs that a model declares of 8 bits are one digit.
"""

from collections.abc import Sequence

from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, WORDS, Buffer, Kernel
from trinity.lowering.kernels.cpu.panel_geometry import WORD
from trinity.methods.formats.inputs import INT8_LARGEST

ZERO_DIGIT = 128  # what is added to digits where they are multiplied as unsigned bytes
CHUNK = 16  # inputs whose digits stand together: 4 words a digit

Scaled = tuple[str, str]
"""The operation and the other operand that make inputs the integers, not yet rounded."""


def block_words(block: int, digits: int) -> int:
    """Words that hold the digits of a block, the sum of each, and the step."""
    return (block // CHUNK * WORD + 1) * digits + 1


def prepare(
    instructions: Instructions, rows: int, blocks: int, block: int, unsigned: bool
) -> Kernel:
    """`[rows, blocks, block] f32 -> [rows, blocks, words] i32`: digits, their sums, the step.

    One workgroup a row and block.  unsigned: whether digits are `ZERO_DIGIT` more than they are
    """
    digits = instructions.digits
    kernel = Kernel(f"prepare_{digits}{'u' if unsigned else ''}_{rows}x{blocks}x{block}")
    x = kernel.binding((rows, blocks, block), "f32")
    out = kernel.output((rows, blocks, block_words(block, digits)), "i32")
    here = kernel.workgroup(1), kernel.workgroup(0)
    write_exact(kernel, instructions, (x, out), here, (block, unsigned))
    return kernel


def write_exact(
    kernel: Kernel,
    instructions: Instructions,
    buffers: tuple[Buffer, Buffer],
    here: tuple[str, str],
    sizes: tuple[int, bool],
) -> None:
    """One block of `prepare`.  buffers: floats, words   here: row and block
    sizes: inputs of a block, and whether digits are unsigned
    """
    (x, _), (block, unsigned) = buffers, sizes
    with kernel.loop(block, LANES, [(kernel.constant(0, WORDS), WORDS)]) as loop:
        loop.yielded = [larger(kernel, loop.carried[0], x.load([*here, loop.index], FLOATS))]
    digits = instructions.digits
    scale = exact_step(kernel, largest_of(kernel, loop.results[0]), digits)
    _write(kernel, instructions, buffers, here, (block, digits, unsigned), scale)


def largest_integer(digits: int) -> int:
    """Of an activation in so many digits: rounding cannot carry past digit 127."""
    largest: int = 127 * 256 ** (digits - 1)
    return largest


def exact_step(kernel: Kernel, largest: str, digits: int) -> tuple[Scaled, str]:
    """What makes integers of a block whose largest magnitude is known, and its step."""
    smallest = kernel.constant("1.0e-30", "f32")  # a block of zeros has a step too
    largest = kernel.value(f"arith.maximumf {largest}, {smallest} : f32")
    limit = kernel.constant(f"{float(largest_integer(digits))}", "f32")
    step = kernel.value(f"arith.divf {largest}, {limit} : f32")
    inverse = kernel.splat(kernel.value(f"arith.divf {limit}, {largest} : f32"), FLOATS)
    return ("arith.mulf", inverse), step


def prepare_rounded(
    instructions: Instructions,
    rows: int,
    blocks: int,
    block: int,
    group_blocks: int,
    unsigned: bool,
) -> Kernel:
    """`[rows, blocks, block] f32 -> [rows, blocks, words] i32`: inputs that the model declares of 8
    bits, as one digit, its sum, the step.

    group_blocks: blocks that share a step, the largest of their inputs over 127
    unsigned: as of `prepare`
    """
    kind = "prepare_rounded_u" if unsigned else "prepare_rounded"
    kernel = Kernel(f"{kind}_{rows}x{blocks}x{block}_{group_blocks}")
    x = kernel.binding((rows, blocks, block), "f32")
    out = kernel.output((rows, blocks, block_words(block, 1)), "i32")
    here = kernel.workgroup(1), kernel.workgroup(0)
    write_rounded(kernel, instructions, (x, out), here, (block, group_blocks, unsigned))
    return kernel


def write_rounded(
    kernel: Kernel,
    instructions: Instructions,
    buffers: tuple[Buffer, Buffer],
    here: tuple[str, str],
    sizes: tuple[int, int, bool],
) -> None:
    """One block of `prepare_rounded`.  buffers: floats, words   here: row and block
    sizes: inputs of a block, blocks that share a step, and whether digits are unsigned

    The same divisions and roundings as `InputFormat.rounded`, so that no code differs.
    """
    (x, _), (row, own), (block, group_blocks, unsigned) = buffers, here, sizes
    by = kernel.constant(group_blocks)
    first = kernel.times(kernel.value(f"arith.divui {own}, {by} : index"), group_blocks)
    with kernel.loop(group_blocks, 1, [(kernel.constant(0, WORDS), WORDS)]) as group:
        other = kernel.value(f"arith.addi {first}, {group.index} : index")
        with kernel.loop(block, LANES, [(group.carried[0], WORDS)]) as loop:
            values = x.load([row, other, loop.index], FLOATS)
            loop.yielded = [larger(kernel, loop.carried[0], values)]
        group.yielded = loop.results
    scaled, step = rounded_step(kernel, largest_of(kernel, group.results[0]))
    _write(kernel, instructions, buffers, here, (block, 1, unsigned), (scaled, step))


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
    instructions: Instructions,
    buffers: tuple[Buffer, Buffer],
    here: Sequence[str],
    sizes: tuple[int, int, bool],
    scale: tuple[Scaled, str],
) -> None:
    """The digits of one block, their sums, and the step.

    buffers: floats, words   here: row and block   sizes: inputs, digits, whether those are unsigned
    scale: as of `exact_step`
    """
    (x, out), (block, digits, unsigned), (scaled, step) = buffers, sizes, scale
    words, zeros = block_words(block, digits), kernel.constant(0, WORDS)
    with kernel.loop(block, LANES, [(zeros, WORDS)] * digits) as loop:
        values = x.load([*here, loop.index], FLOATS)
        chunk = kernel.value(f"arith.divui {loop.index}, {kernel.constant(CHUNK)} : index")
        place = kernel.times(chunk, WORD * digits)
        for i, digit in enumerate(split(kernel, instructions, values, scaled, digits)):
            narrow = in_bytes(kernel, instructions, digit)
            if unsigned:
                zero = kernel.constant(ZERO_DIGIT * 0x01010101 - 2**32, "vector<4xi32>")
                narrow = kernel.value(f"arith.xori {narrow}, {zero} : vector<4xi32>")
            out.store(narrow, [*here, kernel.add(place, WORD * i)], "vector<4xi32>")
            total = kernel.value(f"arith.addi {loop.carried[i]}, {digit} : {WORDS}")
            loop.yielded.append(total)
    for i in range(digits):
        total = kernel.value(f"vector.reduction <add>, {loop.results[i]} : {WORDS} into i32")
        out.store_scalar(total, [*here, kernel.constant(words - digits - 1 + i)])
    step = kernel.value(f"arith.bitcast {step} : f32 to i32")
    out.store_scalar(step, [*here, kernel.constant(words - 1)])


def split(
    kernel: Kernel, instructions: Instructions, values: str, scaled: Scaled, digits: int
) -> list[str]:
    """The digits of a vector of inputs, the lowest first, as words."""
    values = kernel.value(f"{scaled[0]} {values}, {scaled[1]} : {FLOATS}")
    # By the instruction: the compiler writes out roundings in some twenty of them.
    assert instructions.nearest
    rest = instructions.nearest(kernel, values)
    found = []
    for _ in range(digits - 1):
        digit, rest = _low_digit(kernel, rest)
        found.append(digit)
    return [*found, rest]


def in_bytes(kernel: Kernel, instructions: Instructions, digit: str) -> str:
    """The low bytes of 16 words, `vector<4xi32>`."""
    return kernel.bitcast(instructions.narrow(kernel, digit), "vector<16xi8>", "vector<4xi32>")


def _low_digit(kernel: Kernel, value: str) -> tuple[str, str]:
    """The signed lowest base-256 digit, and what is left, divided by 256."""
    by = kernel.constant(24, WORDS)
    digit = kernel.value(f"arith.shli {value}, {by} : {WORDS}")
    digit = kernel.value(f"arith.shrsi {digit}, {by} : {WORDS}")
    rest = kernel.value(f"arith.subi {value}, {digit} : {WORDS}")
    return digit, kernel.value(f"arith.shrsi {rest}, {kernel.constant(8, WORDS)} : {WORDS}")
