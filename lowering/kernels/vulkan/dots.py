"""Inputs that a model declares of 8 bits as bytes for integer dot products (dots.glsl)."""

from trinity.lowering.kernels.padded_panels import BLOCK
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.mlir.builder import Builder, Operand, tensor_type
from trinity.lowering.rows.changed_inputs import largest_inputs
from trinity.methods.formats.inputs import INT8_LARGEST

WORDS = BLOCK // 4  # of 32 bits, of a block's codes
ABOUT = 2  # words behind: the block's step and the sum of its codes
LOOPS = ("m", "g", "b", "w", "k")  # rows, groups, their blocks, words of a block, codes of a word
# The step of a group: 1 where all inputs are zero, and NaN where one is, which has no code.
STEP = [
    "%zero_f = arith.constant 0.0 : f32",
    "%one_f = arith.constant 1.0 : f32",
    f"%limit = arith.constant {INT8_LARGEST}.0 : f32",
    "%some = arith.cmpf ugt, %in_largest, %zero_f : f32",
    "%part = arith.divf %in_largest, %limit : f32",
    "%step = arith.select %some, %part, %one_f : f32",
]
CODE = [
    *STEP,
    "%ratio = arith.divf %in_x, %step : f32",
    "%rounded = math.roundeven %ratio : f32",
    "%code = arith.fptosi %rounded : f32 to i32",
]
INTO_WORDS = [
    "%byte = arith.constant 255 : i32",
    "%eight = arith.constant 8 : i32",
    "%place = linalg.index 4 : index",
    "%number = arith.index_cast %place : index to i32",
    "%by = arith.muli %number, %eight : i32",
    "%own = arith.andi %code, %byte : i32",
    "%moved = arith.shli %own, %by : i32",
    "%yield = arith.ori %acc, %moved : i32",
]
STEP_OR_TOTAL = [
    "%bits = arith.bitcast %step : f32 to i32",
    "%place = linalg.index 3 : index",
    "%none = arith.constant 0 : index",
    "%first = arith.cmpi eq, %place, %none : index",
    "%yield = arith.select %first, %bits, %in_total : i32",
]


def dotted(strips: Strips) -> bool:
    """Whether a weight is multiplied with its inputs' codes.

    A weight of codes is, if all inputs of a block share one step, and none has a scale.  Outliers
    are multiplied with floats.
    """
    about = strips.format
    if about.inputs is None or about.grid is None or about.outliers:
        return False
    size = about.inputs.group_size or about.shape[1]
    whole = strips.padded_group == strips.group and size % BLOCK == 0
    return whole and strips.step == BLOCK and about.grid.input_scale is None


def byte_inputs(build: Builder, strips: Strips, rows: int, x: str) -> tuple[str, str]:
    """x, [rows, in], as words, int32 [rows, blocks * (WORDS + ABOUT)], and their type.

    A word has the codes of four inputs, the first in its lowest bits.
    """
    inputs, (_, d_in) = strips.format.inputs, strips.format.shape
    assert inputs is not None
    size = inputs.group_size or d_in
    sizes = (d_in // size, size // BLOCK, WORDS, 4)
    blocks = (rows, *sizes[:2])
    _, found = largest_inputs(build, rows, x, d_in, inputs)
    largest = Operand("largest", found, LOOPS[:2], blocks[:2], "f32")
    value = build.expand(x, (rows, d_in), [[rows], list(sizes)], "f32")
    given = [Operand("x", value, LOOPS, (rows, *sizes), "f32"), largest]
    words = build.generic(
        " ".join(LOOPS), given, _zeros(build, (*blocks, WORDS)), "k", [*CODE, *INTO_WORDS]
    )
    added = [*CODE, "%yield = arith.addi %acc, %code : i32"]
    total = build.generic(" ".join(LOOPS), given, _zeros(build, blocks), "w k", added)
    operands = [largest, Operand("total", total, LOOPS[:3], blocks, "i32")]
    output = _zeros(build, (*blocks, ABOUT))
    about = build.generic(" ".join(LOOPS[:4]), operands, output, "", [*STEP, *STEP_OR_TOTAL])
    kinds = [tensor_type((*blocks, n), "i32") for n in (WORDS, ABOUT, WORDS + ABOUT)]
    joined = build.value(
        f"tensor.concat dim(3) {words}, {about} : ({kinds[0]}, {kinds[1]}) -> {kinds[2]}"
    )
    made = build.collapse(joined, [[rows], [*sizes[:2], WORDS + ABOUT]], "i32")
    return made, tensor_type((rows, strips.blocks * (WORDS + ABOUT)), "i32")


def _zeros(build: Builder, shape: tuple[int, ...]) -> Operand:
    """Of integers, for the first loops."""
    kind = tensor_type(shape, "i32")
    zero = build.value("arith.constant 0 : i32")
    empty = build.value(f"tensor.empty() : {kind}")
    value = build.value(f"linalg.fill ins({zero} : i32) outs({empty} : {kind}) -> {kind}")
    return Operand("out", value, LOOPS[: len(shape)], shape, "i32")
