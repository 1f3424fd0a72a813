"""What is done to a product's input before it, as upstream linalg: what a model declares (turned by
a Hadamard matrix, rounded to 8 bits), and scales of inputs.
"""

from trinity.lowering.mlir.builder import Builder, Operand, multiply_add, tensor_type, widen
from trinity.methods.formats import InputFormat, hadamard
from trinity.methods.formats.inputs import INT8_LARGEST


def changed_input(build: Builder, rows: int, x: str, d_in: int, inputs: InputFormat) -> str:
    """What a product reads of its input: turned and then rounded, or one of the two.

    x: [rows, in] -> the same, as float32
    """
    x = turned_input(build, rows, x, d_in, inputs)
    return rounded_input(build, rows, x, d_in, inputs) if inputs.kind else x


def turned_input(build: Builder, rows: int, x: str, d_in: int, inputs: InputFormat) -> str:
    """Inputs times a Hadamard matrix over the root of its rows; the input itself if that is not
    declared.

    x: [rows, in] -> the same, as float32.  The matrix is a Kronecker product: of a small one, and
    of one whose entry (p, q) is -1 where p and q have an odd number of bits in common.
    """
    if inputs.turned is None:
        return x
    small = hadamard.core(inputs.turned)
    assert small is not None  # `InputFormat` has refused others
    numbers = (small / inputs.turned**0.5).tolist()
    size, times = len(numbers), inputs.turned // len(numbers)
    shape = (rows, d_in // inputs.turned, times, size)
    whole = [[rows], list(shape[1:])]
    kind = tensor_type((size, size), "f32")
    core = build.value(f"arith.constant dense<{numbers}> : {kind}")
    loops = ("m", "g", "p", "b")
    source = Operand(
        "x", build.expand(x, (rows, d_in), whole, "f32"), ("m", "g", "p", "a"), shape, "f32"
    )
    matrix = Operand("h", core, ("a", "b"), (size, size), "f32")
    output = Operand("out", build.zeros(shape), loops, shape, "f32")
    body = multiply_add("%in_x", "%in_h")
    found = build.generic("m g p b a", [source, matrix], output, "a", body)
    if times > 1:
        body = [
            "%p = linalg.index 4 : index",
            "%q = linalg.index 2 : index",
            "%both = arith.andi %p, %q : index",
            "%word = arith.index_cast %both : index to i32",
            "%count = math.ctpop %word : i32",
            "%one = arith.constant 1 : i32",
            "%bit = arith.andi %count, %one : i32",
            "%odd = arith.cmpi eq, %bit, %one : i32",
            "%minus = arith.negf %in_x : f32",
            "%signed = arith.select %odd, %minus, %in_x : f32",
            "%yield = arith.addf %acc, %signed : f32",
        ]
        source = Operand("x", found, ("m", "g", "p", "b"), shape, "f32")
        output = Operand("out", build.zeros(shape), ("m", "g", "q", "b"), shape, "f32")
        found = build.generic("m g q b p", [source], output, "p", body)
    return build.collapse(found, whole, "f32")


def rounded_input(build: Builder, rows: int, x: str, d_in: int, inputs: InputFormat) -> str:
    """Every group of inputs as 8-bit integers times one scale, its largest over 127.

    x: [rows, in] -> the same, as float32.  Equal to `InputFormat.rounded`.
    """
    size = inputs.group_size or d_in
    shape, whole = (rows, d_in // size, size), [[rows], [d_in // size, size]]
    value, largest = largest_inputs(build, rows, x, d_in, inputs)
    source = Operand("x", value, ("m", "g", "k"), shape, "f32")
    body = [
        "%zero = arith.constant 0.0 : f32",
        "%one = arith.constant 1.0 : f32",
        f"%limit = arith.constant {INT8_LARGEST}.0 : f32",
        "%some = arith.cmpf ogt, %in_largest, %zero : f32",
        "%part = arith.divf %in_largest, %limit : f32",
        "%step = arith.select %some, %part, %one : f32",
        "%ratio = arith.divf %in_x, %step : f32",
        "%code = math.roundeven %ratio : f32",
        "%yield = arith.mulf %code, %step : f32",
    ]
    scale = Operand("largest", largest, ("m", "g"), shape[:2], "f32")
    output = Operand("out", build.zeros(shape), ("m", "g", "k"), shape, "f32")
    found = build.generic("m g k", [source, scale], output, "", body)
    return build.collapse(found, whole, "f32")


def largest_inputs(
    build: Builder, rows: int, x: str, d_in: int, inputs: InputFormat
) -> tuple[str, str]:
    """The inputs in their groups, and the largest magnitude of each.

    x: [rows, in]  ->  [rows, groups, inputs of a group], [rows, groups]
    """
    size = inputs.group_size or d_in
    shape, whole = (rows, d_in // size, size), [[rows], [d_in // size, size]]
    value = build.expand(x, (rows, d_in), whole, "f32")
    source = Operand("x", value, ("m", "g", "k"), shape, "f32")
    output = Operand("out", build.zeros(shape[:2]), ("m", "g"), shape[:2], "f32")
    body = [
        "%magnitude = math.absf %in_x : f32",
        "%yield = arith.maximumf %acc, %magnitude : f32",
    ]
    return value, build.generic("m g k", [source], output, "k", body)


def scaled_input(build: Builder, rows: int, x: str, scale: Operand) -> str:
    """Every input times its scale.  x: [rows, in], scale: [in] -> [rows, in]"""
    (d_in,) = scale.shape
    left = Operand("x", x, ("m", "k"), (rows, d_in), "f32")
    output = Operand("out", build.zeros((rows, d_in)), ("m", "k"), (rows, d_in), "f32")
    body: list[str] = []
    factor = widen("s", scale.dtype, body)
    body.append(f"%yield = arith.mulf %in_x, {factor} : f32")
    return build.generic("m k", [left, scale], output, "", body)
