"""Many products with weights of one format in one call, each waiting for the one before.

This is how a decoder calls them: a call from Python a token, not one a product.  Timing a product
called by itself would time the call.
"""

from trinity.lowering.graph.annotate import function_name
from trinity.lowering.mlir.builder import Builder, Operand, tensor_type
from trinity.lowering.module.check import linear_text
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets.choose import storage_of
from trinity.lowering.targets.targets import Target
from trinity.methods.formats import WeightFormat

CHAIN = "chain"


def chain_module(weight_format: WeightFormat, target: Target, rows: int, count: int) -> Loaded:
    """A module whose function `CHAIN` takes x [rows, in] and the stored tensors of `count` weights.

    -> its last product, [rows, out]
    """
    return Loaded(compile_text(chain_text(weight_format, target, rows, count), target), target)


def chain_text(
    weight_format: WeightFormat, target: Target, rows: int, count: int, dtype: str = "float32"
) -> str:
    """Stage target of such a module, which has the single product as a function too.

    dtype: of the model
    """
    head, _, _ = linear_text(weight_format, target, rows, dtype).rpartition("}")
    return f"{head}{_chain(weight_format, target, rows, count)}}}\n"


def _chain(weight_format: WeightFormat, target: Target, rows: int, count: int) -> str:
    (out, d_in), build = weight_format.shape, Builder()
    x_type, y_type = tensor_type((rows, d_in), "f32"), tensor_type((rows, out), "f32")
    stored = [tensor_type(*of) for of in storage_of(weight_format, target).shapes().values()]
    arguments, x, y = [f"%arg_x: {x_type}"], "%arg_x", ""
    for number in range(count):
        names = [f"%arg_{number}_{i}" for i in range(len(stored))]
        arguments += [f"{name}: {kind}" for name, kind in zip(names, stored, strict=True)]
        if y:
            x = _after(build, rows, d_in, out, y)
        types = ", ".join([x_type, *stored])
        callee = function_name(weight_format, rows)
        y = build.value(f"func.call @{callee}({', '.join([x, *names])}) : ({types}) -> {y_type}")
    text = build.function(CHAIN, arguments, y, y_type)
    return text.replace("func.func private", "func.func", 1)


def _after(build: Builder, rows: int, d_in: int, out: int, y: str) -> str:
    """`x + 0 y`: x again, once a product is there; of floats no compiler may leave that out."""
    inputs = [
        Operand("x", "%arg_x", ("m", "k"), (rows, d_in), "f32"),
        Operand("y", y, ("m", "0"), (rows, out), "f32"),
    ]
    output = Operand("out", build.zeros((rows, d_in)), ("m", "k"), (rows, d_in), "f32")
    body = [
        "%zero = arith.constant 0.0 : f32",
        "%nothing = arith.mulf %in_y, %zero : f32",
        "%yield = arith.addf %in_x, %nothing : f32",
    ]
    return build.generic("m k", inputs, output, "", body)
