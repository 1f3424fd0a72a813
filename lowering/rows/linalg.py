"""Stage 2 for one linear: packed storage to a product, as upstream linalg that IREE vectorizes.

Two forms, chosen by the number of rows M of the input:

- **contract** (small M): one contraction unpacks codes in its body and multiplies, one sum for
  every scale group; a second, small one applies the scales.  The dense weight never exists.
- **decode** (large M): one elementwise pass writes the dense weight to a transient buffer, and a
  plain matrix product reads it, so that unpacking is paid once and not once a row.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal

from trinity.lowering.mlir.builder import (
    MLIR_TYPES,
    Builder,
    Operand,
    multiply_add,
    row_product,
    tensor_type,
    widen,
)
from trinity.lowering.rows.changed_inputs import changed_input, scaled_input
from trinity.lowering.rows.row_storage import Layout, Stream, outlier_shapes
from trinity.methods.formats import WeightFormat

CONTRACT_ROWS = 8  # largest M for which unpacking once a row beats writing the dense weight


def linear_function(name: str, layout: Layout, rows: int) -> str:
    """A private function `x: [rows, in], storage... -> y: [rows, out]`, all products in float32."""
    build = Builder()
    out, d_in = layout.format.shape
    arguments = [f"%arg_x: {tensor_type((rows, d_in), 'f32')}"]
    for tensor, (shape, dtype) in layout.shapes().items():
        arguments.append(f"%arg_{tensor}: {tensor_type(shape, dtype)}")
    x = "%arg_x"
    if layout.format.inputs:
        x = changed_input(build, rows, x, d_in, layout.format.inputs)
    result = product_of(build, layout, rows, x, "")
    if layout.format.outliers:
        result = add_outliers(build, layout.format, rows, x, result)
    if layout.format.adapter:
        result = add_adapter(build, layout, rows, x, result)
    return build.function(name, arguments, result, tensor_type((rows, out), "f32"))


def add_outliers(
    build: Builder, weight_format: WeightFormat, rows: int, x: str, result: str
) -> str:
    """Result + x S^T, where S is stored by index.  x: [rows, in], result: [rows, out]"""
    (out, d_in), operands = weight_format.shape, []
    for name, (shape, dtype) in outlier_shapes(weight_format).items():
        operands.append(Operand(name, f"%arg_{name}", ("n", "k"), shape, MLIR_TYPES[dtype]))
    columns, values = operands
    body = [
        "%row = linalg.index 0 : index",
        f"%place = arith.index_cast %in_outlier_columns : {columns.dtype} to index",
        f"%x = tensor.extract {x}[%row, %place] : {tensor_type((rows, d_in), 'f32')}",
    ]
    body += multiply_add("%x", widen("outlier_values", values.dtype, body))
    output = Operand("out", result, ("m", "n"), (rows, out), "f32")
    return build.generic("m n k", operands, output, "k", body)


def add_adapter(build: Builder, layout: Layout, rows: int, x: str, result: str) -> str:
    """Result + (x A^T) B^T, of the stored factors.  x: [rows, in] -> [rows, out]"""
    low = _factor_product(build, layout, "A", rows, x, None)
    return _factor_product(build, layout, "B", rows, low, result)


def _factor_product(
    build: Builder, layout: Layout, name: Literal["A", "B"], rows: int, x: str, start: str | None
) -> str:
    """X W^T for a factor W, packed or plain, added to `start` if given."""
    factor = layout.factor_layouts[name]
    (n, k), shapes = factor.format.shape, layout.shapes()
    if name in shapes:
        left = Operand("x", x, ("m", "k"), (rows, k), "f32")
        right = Operand("w", f"%arg_{name}", ("n", "k"), (n, k), MLIR_TYPES[shapes[name][1]])
        return row_product(build, left, right, start)
    found = product_of(build, factor, rows, x, f"{name}_")
    if start is None:
        return found
    terms = [
        Operand(side, of, ("m", "n"), (rows, n), "f32") for side, of in (("y", start), ("z", found))
    ]
    output = Operand("out", build.zeros((rows, n)), ("m", "n"), (rows, n), "f32")
    body = ["%yield = arith.addf %in_y, %in_z : f32"]
    return build.generic("m n", terms, output, "", body)


def product_of(build: Builder, layout: Layout, rows: int, x: str, prefix: str) -> str:
    """X W^T of the stored weight in the arguments `%arg_<prefix>...`, in the form for its rows."""
    if "input_scale" in layout.shapes():
        (d_in,), dtype = layout.shapes()["input_scale"]
        scale = Operand("s", f"%arg_{prefix}input_scale", ("k",), (d_in,), MLIR_TYPES[dtype])
        x = scaled_input(build, rows, x, scale)
    linear = _Linear(build, layout, rows, x, prefix)
    return linear.contract() if rows <= CONTRACT_ROWS else linear.decode_and_multiply()


class _Linear:
    """Emits one linear; loop names: m row, n output, g scale group, u/f0.. position, d place.

    A position is `u` and the factors; `d` is the place of an input in its N:M group.
    """

    def __init__(self, build: Builder, layout: Layout, rows: int, x: str, prefix: str) -> None:
        """x: the input, [rows, in]   prefix: of the arguments that hold the weight."""
        self.build, self.layout, self.rows, self.x, self.prefix = build, layout, rows, x, prefix
        self.factors = [f"f{i}" for i in range(len(layout.factors))]
        self.sizes = {"n": layout.format.shape[0], "m": rows, "g": layout.groups, "u": layout.units}
        self.sizes |= dict(zip(self.factors, layout.factors, strict=True))
        self.sizes["d"] = layout.span
        self.places = ["d"] if layout.span > 1 else []

    def contract(self) -> str:
        """y = x W^T with the unpacking in the product.  -> [rows, out]"""
        inner = ["u", *self.factors, *self.places]
        scaled = self.layout.format.grid is not None
        outer = ["g", "m", "n"] if scaled else ["m", "n"]
        loops = outer + ([] if scaled else ["g"]) + inner
        reduced = inner if scaled else ["g", *inner]
        body: list[str] = []
        body += multiply_add("%in_x", self.read_weight(loops, body))
        output = self.operand("out", self.build.zeros(self.extent(outer)), outer, "f32")
        inputs = [self.input(), *self.weight_operands()]
        result = self.build.generic(" ".join(loops), inputs, output, " ".join(reduced), body)
        return self.apply_scale(result) if scaled else result

    def apply_scale(self, sums: str) -> str:
        """Sum over scale groups of scale times the group's sum.

        [groups, rows, out] -> [rows, out]
        """
        scale, body = self.scale(), list[str]()
        body += multiply_add("%in_x", widen("scale", scale.dtype, body))
        output = self.operand("out", self.build.zeros(self.extent("mn")), "mn", "f32")
        inputs = [self.operand("x", sums, "gmn", "f32"), scale]
        return self.build.generic("m n g", inputs, output, "g", body)

    def decode_and_multiply(self) -> str:
        """y = x W^T with the weight written out first.  -> [rows, out]"""
        entry = ["n", "g", "u", *self.factors, *self.places]
        body: list[str] = []
        weight, inputs = self.read_weight(entry, body), self.weight_operands()
        if self.layout.format.grid:
            scale = self.scale()
            inputs.append(scale)
            factor = widen("scale", scale.dtype, body)
            body.append(f"%scaled = arith.mulf {weight}, {factor} : f32")
            weight = "%scaled"
        start = self.build.value(f"tensor.empty() : {tensor_type(self.extent(entry), 'f32')}")
        output = self.operand("out", start, entry, "f32")
        dense = self.build.generic(" ".join(entry), inputs, output, "", body, weight)
        width = prod(self.extent(entry[1:]))
        dense = self.build.collapse(dense, [[self.sizes["n"]], self.extent(entry[1:])], "f32")
        x = self.input()
        flat = self.build.collapse(x.value, [[self.rows], x.shape[1:]], "f32")
        return row_product(
            self.build,
            Operand("x", flat, ("m", "k"), (self.rows, width), "f32"),
            Operand("w", dense, ("n", "k"), (self.sizes["n"], width), "f32"),
        )

    def input(self) -> Operand:
        """The activations by scale group, position and place, padded with zeros."""
        layout, build = self.layout, self.build
        shape: tuple[int, ...] = (
            self.rows,
            layout.groups,
            layout.positions,
            *self.extent(self.places),
        )
        value = build.expand(
            self.x, (self.rows, layout.format.shape[1]), [[self.rows], shape[1:]], "f32"
        )
        value = build.pad_end(value, shape, 2, layout.padded, "f32")
        shape = (self.rows, layout.groups, layout.padded, *shape[3:])
        split = [
            [self.rows],
            [layout.groups],
            self.extent(["u", *self.factors]),
            *([n] for n in shape[3:]),
        ]
        value = build.expand(value, shape, split, "f32")
        return self.operand("x", value, ["m", "g", "u", *self.factors, *self.places], "f32")

    def weight_operands(self) -> list[Operand]:
        """Values or codes, metadata and zero points, split so that every index is one loop.

        Planes are operands of their own: as a loop, they would be a sum that the input has no part
        in.
        """
        shapes, layout = self.layout.shapes(), self.layout
        found = []
        for name in layout.weight_tensors:
            (planes, *shape), dtype = shapes[name]
            stream = next((s for s in layout.streams if s.name == name), None)
            run = ["u", *self.byte_factors(stream)]
            split, kind = [shape[:1], shape[1:2], self.extent(run)], MLIR_TYPES[dtype]
            for plane in range(planes):
                value = self.build.first_index(
                    f"%arg_{self.prefix}{name}", (planes, *shape), plane, kind
                )
                value = self.build.expand(value, shape, split, kind)
                found.append(self.operand(f"{name}{plane}", value, ["n", "g", *run], kind))
        if layout.format.grid and not layout.format.grid.symmetric:
            found.append(self.per_group("zero_point", "i8"))
        return found

    def read_weight(self, loops: Sequence[str], body: list[str]) -> str:
        """Append lines that compute an entry, its scale apart, from `weight_operands`; its name."""
        if not self.places:
            return self.read_plane(0, loops, body)
        body += [
            "%nothing = arith.constant 0.0 : f32",
            f"%place = linalg.index {loops.index('d')} : index",
            "%place_i = arith.index_cast %place : index to i32",
        ]
        weight = "%nothing"
        for plane in range(self.layout.planes):
            value = self.read_plane(plane, loops, body)
            index = self.read_field("index", plane, loops, body)
            body += [
                f"%here{plane} = arith.cmpi eq, {index}, %place_i : i32",
                f"%weight{plane} = arith.select %here{plane}, {value}, {weight} : f32",
            ]
            weight = f"%weight{plane}"
        return weight

    def read_plane(self, plane: int, loops: Sequence[str], body: list[str]) -> str:
        """Append lines that compute what one plane keeps; its name."""
        grid = self.layout.format.grid
        if grid is None:
            return widen(f"values{plane}", MLIR_TYPES[self.layout.shapes()["values"][1]], body)
        codes, zero = self.read_field("codes", plane, loops, body), f"%zero{plane}"
        if grid.symmetric:
            body.append(f"{zero} = arith.constant {2 ** (grid.bits - 1)} : i32")
        else:
            body.append(f"{zero} = arith.extui %in_zero_point : i8 to i32")
        body += [
            f"%centred{plane} = arith.subi {codes}, {zero} : i32",
            f"%value{plane} = arith.sitofp %centred{plane} : i32 to f32",
        ]
        return f"%value{plane}"

    def read_field(self, name: str, plane: int, loops: Sequence[str], body: list[str]) -> str:
        """Append lines that put a field together from its streams; its name, an i32."""
        streams = [s for s in self.layout.streams if s.field == name]
        parts = [self.read_stream(stream, plane, loops, body) for stream in streams]
        if len(parts) == 1:
            return parts[0]
        tag = f"%{name}{plane}"
        body += [
            f"{tag}_by = arith.constant {streams[1].shift} : i32",
            f"{tag}_up = arith.shli {parts[1]}, {tag}_by : i32",
            f"{tag}_all = arith.ori {parts[0]}, {tag}_up : i32",
        ]
        return f"{tag}_all"

    def read_stream(self, stream: Stream, plane: int, loops: Sequence[str], body: list[str]) -> str:
        """Append lines that take this lane's bits out of a byte; their name, an i32."""
        tag = f"%{stream.name}{plane}"
        moved, step = f"{tag}_byte", stream.bits
        body.append(f"{moved} = arith.extui %in_{tag[1:]} : i8 to i32")
        if stream.lanes == 1:
            return moved
        for name in reversed(self.lane_factors(stream)):
            part = f"{tag}_{name}"
            body += [
                f"{part} = linalg.index {loops.index(name)} : index",
                f"{part}_i = arith.index_cast {part} : index to i32",
                f"{part}_step = arith.constant {step} : i32",
                f"{part}_shift = arith.muli {part}_i, {part}_step : i32",
                f"{part}_moved = arith.shrui {moved}, {part}_shift : i32",
            ]
            moved, step = f"{part}_moved", step * self.sizes[name]
        body += [
            f"{tag}_mask = arith.constant {2**stream.bits - 1} : i32",
            f"{tag}_bits = arith.andi {moved}, {tag}_mask : i32",
        ]
        return f"{tag}_bits"

    def lane_factors(self, stream: Stream | None) -> list[str]:
        """The trailing factors that number the lanes of a byte."""
        found: list[str] = []
        lanes = stream.lanes if stream else 1
        while prod(self.extent(found)) < lanes:
            found.insert(0, self.factors[-len(found) - 1])
        return found

    def byte_factors(self, stream: Stream | None) -> list[str]:
        """The leading factors that number the bytes of a run."""
        return self.factors[: len(self.factors) - len(self.lane_factors(stream))]

    def scale(self) -> Operand:
        """Scales by output and group, as far as they differ."""
        return self.per_group("scale", MLIR_TYPES[self.layout.shapes()["scale"][1]])

    def per_group(self, name: str, dtype: str) -> Operand:
        """A tensor of the shape of the scales; one number for the tensor has no loops."""
        shape = self.layout.shapes()[name][0]
        if shape == (1, 1):
            value = self.build.value(
                f"tensor.collapse_shape %arg_{self.prefix}{name} [] : "
                f"{tensor_type(shape, dtype)} into tensor<{dtype}>"
            )
            return Operand(name, value, (), (), dtype)
        return Operand(name, f"%arg_{self.prefix}{name}", ("n", "g"), shape, dtype)

    def operand(self, name: str, value: str, loops: Sequence[str], dtype: str) -> Operand:
        """A tensor indexed by these loops, of their sizes."""
        return Operand(name, value, tuple(loops), tuple(self.extent(loops)), dtype)

    def extent(self, loops: Sequence[str]) -> list[int]:
        """Sizes of loops."""
        return [self.sizes[name] for name in loops]
