"""Stage 1 for one linear: a function whose types say what the weight is, not how it is stored.

- Quantized: `!quant.uniform<i4:f32, 1.0>`, cast with `quant.dcast`.  The step is 1: scales are
  operands beside the codes, so that a module depends on the format and not on the weight's numbers.
- Values of a table: MLIR's own type where it has one (`f4E2M1FN`, `f8E4M3FN`), else codes and a
  constant table of levels that they are looked up in (`nf4`, i4).  Scales of 8 bits have their own
  types too (`f8E4M3FN`, `f8E8M0FNU`).
- Codes under scales that are codes: integer codes, those of scales and zero points, and the grids
  that some rows share.
- Values of a row's own table: integer codes, and all rows' levels that they are looked up in.
- Vectors of tables: no type says that a code stands for several entries.  So the weight is integer
  codes of 8 bits, [out, in // g, K], beside the tables [K, 256, g] and the rows' scales; the sum of
  the vectors that they name is written out (`tensor.extract`).
- Outliers: two operands beside the weight, which input each is of and its value, in a sum of their
  own (`tensor.extract`): the sparse dialect has no level of at most so many entries a row.
- N:M: `#sparse_tensor.encoding<... structured[n, m]>`; unstructured: a compressed level.
- Both: the sparse dialect takes no element type but plain integers of 8 bits and more and floats
  (`tensor<..x!quant.uniform<..>, #sparse>` and `tensor<..xi4, #sparse>` do not parse), so the
  weight is a sparse tensor of i8 codes, and the function converts it to dense and casts it to the
  quantized type.
"""

import re
from dataclasses import replace

import torch

from trinity.lowering.mlir.builder import (
    MLIR_TYPES,
    Builder,
    Operand,
    tensor_type,
    widen,
)
from trinity.lowering.mlir.calls import PackedCall
from trinity.lowering.rows.changed_inputs import changed_input
from trinity.lowering.rows.linalg import add_adapter, add_outliers, linear_function
from trinity.lowering.rows.row_storage import Layout, layout_of
from trinity.lowering.targets.choose import storage_of
from trinity.lowering.targets.targets import Target
from trinity.methods.formats import NM, Codebook, WeightFormat
from trinity.methods.formats.level_tables import levels, zero_code
from trinity.methods.formats.nested_grid import OF

OWN_TYPES = {"e2m1": "f4E2M1FN", "e4m3": "f8E4M3FN"}
SCALE_TYPES = {torch.float8_e4m3fn: "f8E4M3FN", torch.float8_e8m0fnu: "f8E8M0FNU"}


def function_name(weight_format: WeightFormat, rows: int) -> str:
    """The name of a linear's function, the same at every stage; equal only for equal formats."""
    out, d_in = weight_format.shape
    words = [weight_format.label, f"{out}x{d_in}", f"m{rows}"]
    if weight_format.coded:
        words.insert(1, f"scale {weight_format.coded.scale_dtype}")
    if weight_format.row_codebook:
        words.insert(1, weight_format.row_codebook.dtype)
    if nested := weight_format.nested:
        words.insert(1, f"{nested.dtype} by {nested.rows}")
    if weight_format.grid:
        words.insert(2, str(weight_format.grid.input_scale or ""))
    if of := weight_format.vectors:
        words.insert(1, f"{of.dtype} scale {of.scale_dtype}")
    if weight_format.outliers:
        words.insert(1, f"outliers {weight_format.outliers.dtype}")
    if weight_format.adapter:
        words.insert(1, "adapter " + " ".join(_factor_dtypes(weight_format)))
    return "linear_" + re.sub(r"\W+", "_", " ".join(words))


def _factor_dtypes(weight_format: WeightFormat) -> list[str]:
    """Float types in an adapter that its label leaves out: of values, or of scales."""
    factors = [weight_format.factor(name) for name in ("B", "A")]
    return [str(f.coded.scale_dtype if f.coded else f.dtype) for f in factors]


def annotated_call(layer: str, weight_format: WeightFormat, rows: int) -> PackedCall:
    """The annotated function of a layer's format, and the globals it is called with."""
    out, d_in = weight_format.shape
    layout = layout_of(weight_format)
    operands = [(f"{layer}.weight", weight_type(weight_format))]
    for name in layout.operand_tensors:
        operands.append((f"{layer}.{name}", _operand_type(layout, name)))
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
    """The type of the annotated weight, [out, in], or of the codes of vectors."""
    if weight_format.vectors:
        return tensor_type(*layout_of(weight_format).shapes()["codes"])
    sparse, quantized = encoding(weight_format), quantized_type(weight_format)
    if own := weight_format.row_codebook or weight_format.nested:
        return tensor_type(weight_format.shape, f"i{own.bits}")
    if weight_format.codebook:
        element = "i8" if sparse else _code_type(weight_format.codebook)
        return tensor_type(weight_format.shape, element, sparse)
    if quantized is None:
        return tensor_type(weight_format.shape, _float_type(weight_format), sparse)
    return tensor_type(weight_format.shape, "i8" if sparse else quantized, sparse)


def annotated_function(layout: Layout, rows: int) -> str:
    """`x: [rows, in], weight, scale, zero_point, B, A -> [rows, out]`: those that there are."""
    weight_format, build = layout.format, Builder()
    out, d_in = weight_format.shape
    arguments = [f"%arg_x: {tensor_type((rows, d_in), 'f32')}"]
    arguments.append(f"%arg_weight: {weight_type(weight_format)}")
    arguments += [f"%arg_{name}: {_operand_type(layout, name)}" for name in layout.operand_tensors]
    x = "%arg_x"
    if weight_format.inputs:
        x = changed_input(build, rows, x, d_in, weight_format.inputs)
    if weight_format.vectors:
        result = _vector_contraction(build, layout, rows, x)
    else:
        result = _contraction(build, layout, rows, x, _dense_weight(build, weight_format))
    if weight_format.outliers:
        result = add_outliers(build, weight_format, rows, x, result)
    if weight_format.adapter:
        result = add_adapter(build, layout, rows, x, result)
    return build.function(
        function_name(weight_format, rows), arguments, result, tensor_type((rows, out), "f32")
    )


def _dense_weight(build: Builder, weight_format: WeightFormat) -> Operand:
    """The weight as floats (codes still unscaled), for the contraction."""
    out, d_in = weight_format.shape
    value, source = "%arg_weight", weight_type(weight_format)
    if own := weight_format.row_codebook or weight_format.nested:
        return Operand("w", "%arg_weight", ("n", "k"), weight_format.shape, f"i{own.bits}")
    if weight_format.codebook:
        return _coded_weight(build, weight_format, weight_format.codebook)
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


def _coded_weight(build: Builder, weight_format: WeightFormat, values: Codebook) -> Operand:
    """The codes, of a type of MLIR's that says what they stand for, or as integers."""
    shape, kind, value = weight_format.shape, _code_type(values), "%arg_weight"
    if encoding(weight_format):
        source, dense = weight_type(weight_format), tensor_type(shape, "i8")
        value = build.value(f"sparse_tensor.convert {value} : {source} to {dense}")
        narrow = tensor_type(shape, f"i{values.bits}")
        if values.bits < 8:
            value = build.value(f"arith.trunci {value} : {dense} to {narrow}")
        if kind != f"i{values.bits}":
            value = build.value(f"arith.bitcast {value} : {narrow} to {tensor_type(shape, kind)}")
    return Operand("w", value, ("n", "k"), shape, kind)


def _level(build: Builder, weight_format: WeightFormat, body: list[str]) -> str:
    """Lines that look an integer code up; the level's name.

    Under a mask, what the sparse dialect leaves out is 0, so codes are there by what tells them
    from the code of zero (exclusive or).
    """
    assert weight_format.codebook
    table, bits = weight_format.codebook.table, weight_format.codebook.bits
    found, zero = levels(table).tolist(), zero_code(table) if weight_format.pattern else 0
    kind = f"tensor<{len(found)}xf32>"
    numbers = [found[code ^ zero] for code in range(len(found))]
    name = build.value(f"arith.constant dense<{numbers}> : {kind}")
    body += [
        f"%code = arith.extui %in_w : i{bits} to i32",
        "%place = arith.index_cast %code : i32 to index",
        f"%level = tensor.extract {name}[%place] : {kind}",
    ]
    return "%level"


def _own_level(layout: Layout, body: list[str]) -> str:
    """Lines that look a code up in its row's own levels; the level's name."""
    assert layout.format.row_codebook
    shape, dtype = layout.shapes()["levels"]
    kind, row = MLIR_TYPES[dtype], "linalg.index 1 : index"
    body += [
        f"%code = arith.extui %in_w : i{layout.format.row_codebook.bits} to i32",
        "%place = arith.index_cast %code : i32 to index",
        f"%row = {row if shape[0] > 1 else 'arith.constant 0 : index'}",
        f"%in_own = tensor.extract %arg_levels[%row, %place] : {tensor_type(shape, kind)}",
    ]
    return widen("own", kind, body)


def _nested(layout: Layout, inputs: list[Operand], body: list[str]) -> str:
    """Operands and lines that decode a code, `s (q - z)`; the weight's name."""
    nested = layout.format.nested
    assert nested
    group = f"k floordiv {layout.format.shape[1] // nested.groups}"
    for of in OF:
        shape, _ = layout.shapes()[f"{of}_codes"]
        inputs.append(Operand(f"{of}_codes", f"%arg_{of}_codes", ("n", group), shape, "i8"))
        for part in ("low", "step"):
            name, (shape, dtype) = f"{of}_{part}", layout.shapes()[f"{of}_{part}"]
            where = (f"n floordiv {nested.rows}", group)
            inputs.append(Operand(name, f"%arg_{name}", where, shape, MLIR_TYPES[dtype]))
        kind = MLIR_TYPES[layout.shapes()[f"{of}_low"][1]]
        low, step = (widen(f"{of}_{part}", kind, body) for part in ("low", "step"))
        body += [
            f"%{of}_code = arith.uitofp %in_{of}_codes : i8 to f32",
            f"%{of}_above = arith.mulf %{of}_code, {step} : f32",
            f"%{of} = arith.addf %{of}_above, {low} : f32",
        ]
    body += [
        f"%code = arith.uitofp %in_w : i{nested.bits} to f32",
        "%centred = arith.subf %code, %zero : f32",
        "%scaled = arith.mulf %centred, %scale : f32",
    ]
    return "%scaled"


def _contraction(build: Builder, layout: Layout, rows: int, x: str, weight: Operand) -> str:
    """Sum over k of x times (w - zero point) times scale.  -> [rows, out]"""
    (out, d_in), coded, grid = layout.format.shape, layout.format.coded, layout.format.grid
    inputs = [Operand("x", x, ("m", "k"), (rows, d_in), "f32"), weight]
    body: list[str] = []
    if layout.format.row_codebook:
        value = _own_level(layout, body)
    elif layout.format.nested:
        value = _nested(layout, inputs, body)
    elif weight.dtype.startswith("i"):
        value = _level(build, layout.format, body)
    else:
        value = widen("w", weight.dtype, body)
    if coded:
        group = d_in // coded.scale_shape[1]
        where = (("n" if coded.scale_shape[0] > 1 else "0"), f"k floordiv {group}")
        if grid and not grid.symmetric:
            inputs.append(Operand("zero_point", "%arg_zero_point", where, grid.scale_shape, "i8"))
            body.append("%zero = arith.uitofp %in_zero_point : i8 to f32")
            body.append(f"%centred = arith.subf {value}, %zero : f32")
            value = "%centred"
        kind = _scale_type(coded.scale_dtype)
        inputs.append(Operand("scale", "%arg_scale", where, coded.scale_shape, kind))
        scale = widen("scale", kind, body)
        if "outer_scale" in layout.shapes():
            inputs.append(Operand("outer", "%arg_outer_scale", ("0", "0"), (1, 1), "f32"))
            body.append(f"%whole = arith.mulf {scale}, %in_outer : f32")
            scale = "%whole"
        body.append(f"%scaled = arith.mulf {value}, {scale} : f32")
        value = "%scaled"
        if grid and grid.input_scale:
            kind = MLIR_TYPES[layout.shapes()["input_scale"][1]]
            inputs.append(Operand("inputs", "%arg_input_scale", ("k",), (d_in,), kind))
            body.append(f"%by_input = arith.mulf {value}, {widen('inputs', kind, body)} : f32")
            value = "%by_input"
    body.append(f"%product = arith.mulf %in_x, {value} : f32")
    body.append("%yield = arith.addf %acc, %product : f32")
    output = Operand("out", build.zeros((rows, out)), ("m", "n"), (rows, out), "f32")
    return build.generic("m n k", inputs, output, "k", body)


def _vector_contraction(build: Builder, layout: Layout, rows: int, x: str) -> str:
    """Sum over k of x times the sum of the vectors that codes name, times the row's scale."""
    (out, d_in), of, shapes = layout.format.shape, layout.format.vectors, layout.shapes()
    assert of
    codes, tables = weight_type(layout.format), tensor_type(*shapes["codebooks"])
    inputs = [
        Operand("x", x, ("m", "k"), (rows, d_in), "f32"),
        Operand("scale", "%arg_scale", ("n", "0"), (out, 1), MLIR_TYPES[shapes["scale"][1]]),
    ]
    size = build.value(f"arith.constant {of.group} : index")
    books = [build.value(f"arith.constant {k} : index") for k in range(of.books)]
    body = [
        "%row = linalg.index 1 : index",
        "%column = linalg.index 2 : index",
        f"%group = arith.divui %column, {size} : index",
        f"%place = arith.remui %column, {size} : index",
    ]
    total = ""
    for k, book in enumerate(books):
        body += [
            f"%code_{k} = tensor.extract %arg_weight[%row, %group, {book}] : {codes}",
            f"%at_{k} = arith.index_castui %code_{k} : i8 to index",
            f"%in_of_{k} = tensor.extract %arg_codebooks[{book}, %at_{k}, %place] : {tables}",
        ]
        part = widen(f"of_{k}", MLIR_TYPES[shapes["codebooks"][1]], body)
        if total:
            body.append(f"%sum_{k} = arith.addf {total}, {part} : f32")
        total = f"%sum_{k}" if total else part
    body.append(f"%scaled = arith.mulf {total}, {widen('scale', inputs[1].dtype, body)} : f32")
    body.append("%product = arith.mulf %in_x, %scaled : f32")
    body.append("%yield = arith.addf %acc, %product : f32")
    output = Operand("out", build.zeros((rows, out)), ("m", "n"), (rows, out), "f32")
    return build.generic("m n k", inputs, output, "k", body)


def _code_type(values: Codebook) -> str:
    """MLIR's own type of numbers with these bits, or integers of as many."""
    return OWN_TYPES.get(values.table, f"i{values.bits}")


def _scale_type(dtype: str) -> str:
    found: torch.dtype = getattr(torch, dtype)
    return SCALE_TYPES.get(found) or MLIR_TYPES[found]


def _operand_type(layout: Layout, name: str) -> str:
    """Of a stored tensor that is an operand already; scales of 8 bits by what they are."""
    shape, dtype = layout.shapes()[name]
    coded = layout.format.coded
    if name == "scale" and coded:
        return tensor_type(shape, _scale_type(coded.scale_dtype))
    return tensor_type(shape, dtype)


def _float_type(weight_format: WeightFormat) -> str:
    return {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[str(weight_format.dtype)]
