"""Stage 1 for one linear: a function whose types say what the weight is, not how it is stored.

- Quantized: `!quant.uniform<i4:f32, 1.0>`, cast with `quant.dcast`.  The step is 1: scales are
  operands beside the codes, so that a module depends on the format and not on the weight's numbers.
- N:M: `#sparse_tensor.encoding<... structured[n, m]>`; unstructured: a compressed level.
- Both: the sparse dialect takes no element type but plain integers of 8 bits and more and floats
  (`tensor<..x!quant.uniform<..>, #sparse>` and `tensor<..xi4, #sparse>` do not parse), so the
  weight is a sparse tensor of i8 codes, and the function converts it to dense and casts it to the
  quantized type.
"""

import re
from dataclasses import replace

from trinity.lowering.mlir.builder import (
    MLIR_TYPES,
    Builder,
    Operand,
    tensor_type,
    widen,
)
from trinity.lowering.mlir.calls import PackedCall
from trinity.lowering.rows.linalg import add_adapter, linear_function, rounded_input
from trinity.lowering.rows.row_storage import Layout, layout_of
from trinity.lowering.targets.choose import storage_of
from trinity.lowering.targets.targets import Target
from trinity.methods.formats import NM, WeightFormat


def function_name(weight_format: WeightFormat, rows: int) -> str:
    """The name of a linear's function, the same at every stage; equal only for equal formats."""
    out, d_in = weight_format.shape
    words = [weight_format.label, f"{out}x{d_in}", f"m{rows}"]
    if weight_format.grid:
        words.insert(1, f"scale {weight_format.grid.scale_dtype}")
        words.insert(2, str(weight_format.grid.input_scale or ""))
    if weight_format.adapter:
        words.insert(1, "adapter " + " ".join(_factor_dtypes(weight_format)))
    return "linear_" + re.sub(r"\W+", "_", " ".join(words))


def _factor_dtypes(weight_format: WeightFormat) -> list[str]:
    """Float types in an adapter that its label leaves out: of values, or of scales."""
    factors = [weight_format.factor(name) for name in ("B", "A")]
    return [str(f.grid.scale_dtype if f.grid else f.dtype) for f in factors]


def annotated_call(layer: str, weight_format: WeightFormat, rows: int) -> PackedCall:
    """The annotated function of a layer's format, and the globals it is called with."""
    out, d_in = weight_format.shape
    layout = layout_of(weight_format)
    shapes = layout.shapes()
    operands = [(f"{layer}.weight", weight_type(weight_format))]
    for name in layout.operand_tensors:
        operands.append((f"{layer}.{name}", tensor_type(*shapes[name])))
    return PackedCall(
        function_name(weight_format, rows),
        annotated_function(layout, rows),
        (tensor_type((rows, d_in), "f32"),),
        (tensor_type((rows, out), "f32"),),
        tuple(operands),
    )


def storage_call(layer: str, weight_format: WeightFormat, rows: int, target: Target) -> PackedCall:
    """The same function on explicit storage, and the stored tensors it is called with.

    Declared only where a kernel of ours is its body.
    """
    stored, name = storage_of(weight_format, target), function_name(weight_format, rows)
    operands = [(f"{layer}.{key}", tensor_type(*of)) for key, of in stored.shapes().items()]
    body = None
    if stored.path == "compiled":
        body = linear_function(name, layout_of(weight_format), rows)
    call = annotated_call(layer, weight_format, rows)
    return replace(call, body=body, operands=tuple(operands))


def quantized_type(weight_format: WeightFormat) -> str | None:
    """`!quant.uniform` of the codes with unit step; None if not quantized."""
    if weight_format.grid is None:
        return None
    sign = "i" if weight_format.grid.symmetric else "u"
    return f"!quant.uniform<{sign}{weight_format.grid.bits}:f32, 1.0>"


def encoding(weight_format: WeightFormat) -> str | None:
    """`#sparse_tensor.encoding` of the pattern; None if nothing is masked."""
    pattern = weight_format.pattern
    if pattern is None:
        return None
    if isinstance(pattern, NM):
        kept = f"structured[{pattern.n}, {pattern.m}]"
        levels = f"j floordiv {pattern.m} : dense, j mod {pattern.m} : {kept}"
    else:
        levels = "j : compressed"
    return f"#sparse_tensor.encoding<{{ map = (i, j) -> (i : dense, {levels}) }}>"


def weight_type(weight_format: WeightFormat) -> str:
    """The type of the annotated weight, [out, in]."""
    sparse, quantized = encoding(weight_format), quantized_type(weight_format)
    if quantized is None:
        return tensor_type(weight_format.shape, _float_type(weight_format), sparse)
    return tensor_type(weight_format.shape, "i8" if sparse else quantized, sparse)


def annotated_function(layout: Layout, rows: int) -> str:
    """`x: [rows, in], weight, scale, zero_point, B, A -> [rows, out]`: those that there are."""
    weight_format, build = layout.format, Builder()
    (out, d_in), shapes = weight_format.shape, layout.shapes()
    arguments = [f"%arg_x: {tensor_type((rows, d_in), 'f32')}"]
    arguments.append(f"%arg_weight: {weight_type(weight_format)}")
    arguments += [f"%arg_{name}: {tensor_type(*shapes[name])}" for name in layout.operand_tensors]
    x = "%arg_x"
    if weight_format.inputs:
        x = rounded_input(build, rows, x, d_in, weight_format.inputs)
    result = _contraction(build, layout, rows, x, _dense_weight(build, weight_format))
    if weight_format.adapter:
        result = add_adapter(build, layout, rows, x, result)
    return build.function(
        function_name(weight_format, rows), arguments, result, tensor_type((rows, out), "f32")
    )


def _dense_weight(build: Builder, weight_format: WeightFormat) -> Operand:
    """The weight as floats (codes still unscaled), for the contraction."""
    out, d_in = weight_format.shape
    value, source = "%arg_weight", weight_type(weight_format)
    quantized = quantized_type(weight_format)
    if quantized is None:
        kind = _float_type(weight_format)
        return Operand("w", value, ("n", "k"), (out, d_in), kind, encoding(weight_format))
    grid_bits = weight_format.grid.bits if weight_format.grid else 8
    if encoding(weight_format):
        dense = tensor_type((out, d_in), "i8")
        value = build.value(f"sparse_tensor.convert {value} : {source} to {dense}")
        if grid_bits < 8:
            narrow = tensor_type((out, d_in), f"i{grid_bits}")
            value = build.value(f"arith.trunci {value} : {dense} to {narrow}")
            dense = narrow
        source = tensor_type((out, d_in), quantized)
        value = build.value(f"quant.scast {value} : {dense} to {source}")
    target = tensor_type((out, d_in), "f32")
    value = build.value(f"quant.dcast {value} : {source} to {target}")
    return Operand("w", value, ("n", "k"), (out, d_in), "f32")


def _contraction(build: Builder, layout: Layout, rows: int, x: str, weight: Operand) -> str:
    """Sum over k of x times (w - zero point) times scale.  -> [rows, out]"""
    (out, d_in), grid = layout.format.shape, layout.format.grid
    inputs = [Operand("x", x, ("m", "k"), (rows, d_in), "f32"), weight]
    body: list[str] = []
    value = widen("w", weight.dtype, body)
    if grid:
        group, dtype = d_in // grid.scale_shape[1], layout.shapes()["scale"][1]
        where = (("n" if grid.scale_shape[0] > 1 else "0"), f"k floordiv {group}")
        if not grid.symmetric:
            inputs.append(Operand("zero_point", "%arg_zero_point", where, grid.scale_shape, "i8"))
            body.append("%zero = arith.uitofp %in_zero_point : i8 to f32")
            body.append(f"%centred = arith.subf {value}, %zero : f32")
            value = "%centred"
        inputs.append(Operand("scale", "%arg_scale", where, grid.scale_shape, MLIR_TYPES[dtype]))
        scale = widen("scale", MLIR_TYPES[dtype], body)
        body.append(f"%scaled = arith.mulf {value}, {scale} : f32")
        value = "%scaled"
        if grid.input_scale:
            kind = MLIR_TYPES[layout.shapes()["input_scale"][1]]
            inputs.append(Operand("inputs", "%arg_input_scale", ("k",), (d_in,), kind))
            body.append(f"%by_input = arith.mulf {value}, {widen('inputs', kind, body)} : f32")
            value = "%by_input"
    body.append(f"%product = arith.mulf %in_x, {value} : f32")
    body.append("%yield = arith.addf %acc, %product : f32")
    output = Operand("out", build.zeros((rows, out)), ("m", "n"), (rows, out), "f32")
    return build.generic("m n k", inputs, output, "k", body)


def _float_type(weight_format: WeightFormat) -> str:
    return {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[str(weight_format.dtype)]
