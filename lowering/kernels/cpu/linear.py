"""One compressed linear as a function that dispatches our kernels, in text for IREE."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trinity.lowering.kernels.calls import KernelCode, dispatch, entry_of, linear_arguments
from trinity.lowering.kernels.cpu import digits
from trinity.lowering.kernels.cpu.amx import TileTerm
from trinity.lowering.kernels.cpu.amx_floats import FloatTiles, FloatTiling, prepare_pieces
from trinity.lowering.kernels.cpu.code_terms import digits_of, prepared
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Instructions, for_rows
from trinity.lowering.kernels.cpu.kernel_text import Buffer, Kernel
from trinity.lowering.kernels.cpu.outlier_term import OutlierTerm
from trinity.lowering.kernels.cpu.panels import INPUT_SCALE, Panels
from trinity.lowering.kernels.cpu.product import product_grid, write_product
from trinity.lowering.kernels.cpu.product_terms import Term, term_of
from trinity.lowering.kernels.cpu.tiling import Tiling, prepare_tiles
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored
from trinity.lowering.kernels.kernel_storage import FactorName
from trinity.lowering.mlir.builder import MLIR_TYPES, Builder, Operand, tensor_type
from trinity.lowering.rows.changed_inputs import rounded_input, scaled_input, turned_input

# Up to so many rows an adapter's B is added inside the kernel of its base, as floats: one dispatch
# less is worth more than the faster digits.
FUSED_ROWS = 1
# Up to so many inputs or outputs float weights, adapters mostly, stay on vector instructions:
# cutting activations into pieces takes as long as is won (64 x 576 and 1536 x 64 at 128 rows).
NARROW = 64


def linear_kernels(name: str, panels: Panels, rows: int, instructions: Instructions) -> KernelCode:
    """The private function `x: [rows, in], storage... -> y: [rows, out]`, all in float32."""
    writer, made = _Writer(name, rows), for_rows(instructions, rows)
    (out, d_in), adapter = panels.format.shape, panels.factors
    arguments = linear_arguments(d_in, rows, panels.shapes())
    base = writer.use(panels, None, made)
    terms = [base]
    start: str | None = None
    if panels.format.outliers:
        outliers = writer.outliers(panels, made)
        if base.tiled and not base.integers:  # those of floats take a sum to begin with, no terms
            start = writer.product("S_", [outliers])
        else:
            terms.append(outliers)
    if adapter:
        low = writer.product("A_", [writer.use(panels, "A", made)])
        rank = adapter["A"].panels * adapter["A"].rows
        high = _Use(panels, "B", low, rank, of_factor(made, rows).of(adapter["B"]))
        beside = base.tiled and base.integers and not high.codes and not high.tiled
        if rows <= FUSED_ROWS or beside:
            result = writer.product("", [*terms, high], start)
        else:
            result = writer.product("B_", [high], writer.product("", terms, start))
    else:
        result = writer.product("", terms, start)
    result = writer.first_columns(result, panels.panels * panels.rows, out)
    kind = tensor_type((rows, out), "f32")
    function = writer.build.function(name, arguments, result, kind)
    return KernelCode(name, function, tuple(writer.executables.items()))


def of_factor(instructions: Instructions, rows: int) -> Instructions:
    """What multiplies an adapter's B: at few rows its codes are widened, without digits."""
    return INSTRUCTIONS["plain"] if rows <= FUSED_ROWS else instructions


@dataclass(frozen=True)
class _Use:
    """A weight in the function's arguments, or a factor of it, and its input, `x: [rows, stride]`.

    stride: the panels' inputs, and perhaps zeros behind them
    outliers: whether it is the weight's outliers that are used, and nothing else of it
    """

    weight: Panels
    factor: FactorName | None
    x: str
    stride: int
    instructions: Instructions
    outliers: bool = False

    @property
    def panels(self) -> Panels:
        """Of what is used."""
        return self.weight.factors[self.factor] if self.factor else self.weight

    @property
    def tiled(self) -> bool:
        """Whether matrix units multiply it."""
        if not self.instructions.matrix or self.outliers or self.panels.format.nested:
            return False
        return self.integers or (self.panels.as_floats and min(self.panels.format.shape) > NARROW)

    @property
    def integers(self) -> bool:
        """Whether its entries are codes that are integers."""
        return self.panels.integers is not None and not self.outliers

    def term(self, kernel: Kernel, part: Stored, x: Buffer) -> Term:
        """What it is in a sum.  x: as `activation_shape` says"""
        if self.outliers:
            return OutlierTerm(kernel, part, x, self.instructions)
        return term_of(kernel, part, x, self.instructions)

    @property
    def codes(self) -> bool:
        """Whether its entries are codes."""
        return self.panels.codes and not self.outliers


class _Writer:
    """Writes the body of one function."""

    def __init__(self, name: str, rows: int) -> None:
        self.name, self.rows = name, rows
        self.build = Builder()
        self.executables: dict[str, str] = {}
        self.turned: str | None = None

    def use(self, weight: Panels, factor: FactorName | None, made: Instructions) -> "_Use":
        """Of the function's own input, rounded where its digits will not do that."""
        d_in = weight.format.shape[1]
        part = weight.factors[factor] if factor else weight
        use = _Use(weight, factor, self.input(weight), d_in, made.of(part))
        inputs = part.format.inputs
        if inputs and inputs.kind and not (use.instructions.dots and part.rounded_blocks):
            use = replace(use, x=rounded_input(self.build, self.rows, use.x, d_in, inputs))
        return use

    def input(self, weight: Panels) -> str:
        """The function's own input, turned once where that is declared."""
        inputs = weight.format.inputs
        if self.turned is None:
            d_in, x = weight.format.shape[1], "%arg_x"
            self.turned = turned_input(self.build, self.rows, x, d_in, inputs) if inputs else x
        return self.turned

    def outliers(self, weight: Panels, made: Instructions) -> "_Use":
        """Of the function's own input, as floats, rounded if it is."""
        x, d_in, inputs = self.input(weight), weight.format.shape[1], weight.format.inputs
        if inputs and inputs.kind:
            x = rounded_input(self.build, self.rows, x, d_in, inputs)
        return _Use(weight, None, x, d_in, made, outliers=True)

    def product(self, prefix: str, uses: Sequence[_Use], start: str | None = None) -> str:
        """The sum of products with parts of one weight, and `start`.  -> [rows, padded out]"""
        kernel = Kernel(f"{self.name}_{prefix}kernel")
        weight, panels = uses[0].weight, uses[0].panels
        bytes_ = kernel.argument()
        operands = [(f"%arg_{weight.tensor}", tensor_type(*weight.shapes()[weight.tensor]))]
        stored = [Stored.of(kernel, bytes_, weight, use.factor) for use in uses]
        found: list[Buffer] = []
        for use in uses:
            operands.append(self.activations(use))
            found.append(kernel.binding(*self.activation_shape(use)))
        shape = (self.rows, panels.panels * panels.rows)
        outputs = tensor_type(shape, "f32")
        y0 = None
        if start is not None:
            operands.append((start, outputs))
            y0 = kernel.binding(shape, "f32")
        y = kernel.output(shape, "f32")
        each = list(zip(stored, found, uses, strict=True))
        terms = [use.term(kernel, part, x) for part, x, use in each if not use.tiled]
        if not uses[0].tiled:
            grid = product_grid(terms, self.rows)
            places = kernel.workgroup(0), kernel.workgroup(1) if grid[1] > 1 else None
            write_product(kernel, terms, self.rows, places, (y0, y))
        elif not uses[0].integers:
            floats = FloatTiling(panels, self.rows)
            made = uses[0].instructions
            FloatTiles(kernel, stored[0], found[0], floats, made).write(y0, y)
            grid = floats.grid
        else:
            tiling = self.tiling(uses[0])
            made = uses[0].instructions
            TileTerm(kernel, stored[0], found[0], tiling, made).write(terms, y0, y)
            grid = panels.panels, tiling.parts
        return self.dispatch(kernel, grid, operands, outputs)

    def tiling(self, use: _Use) -> Tiling:
        """How codes of a use are multiplied by matrix units."""
        return Tiling(use.panels, self.rows, digits_of(use.panels, use.instructions))

    def activation_shape(self, use: _Use) -> tuple[tuple[int, ...], str]:
        """Shape and element of what a use's kernel reads of its input."""
        panels = use.panels
        if use.tiled:
            tiling = self.tiling(use) if use.integers else FloatTiling(panels, self.rows)
            return tiling.shape, "i32"
        if use.codes:
            return prepared(panels, self.rows, use.instructions)
        return (self.rows, use.stride), "f32"

    def activations(self, use: _Use) -> tuple[str, str]:
        """The input as `activation_shape` says, and its type."""
        kind = tensor_type(*self.activation_shape(use))
        if use.codes and (use.integers or not use.tiled):
            return self.block_activations(use, kind), kind
        if not use.tiled:
            return use.x, kind
        tiling = FloatTiling(use.panels, self.rows)
        x, stride = use.x, use.stride
        if stride < tiling.width:
            x = self.build.pad_end(x, (self.rows, stride), 1, tiling.width, "f32")
            stride = tiling.width
        given = tensor_type((self.rows, stride), "f32")
        kernel = prepare_pieces(tiling, stride)
        return self.dispatch(kernel, (self.rows, 1), [(x, given)], kind), kind

    def block_activations(self, use: _Use, words: str) -> str:
        """The input in blocks, padded, and in digits where the kernel takes those."""
        value, rows, panels = use.x, self.rows, use.panels
        if scale := panels.shapes().get(INPUT_SCALE):
            stored = Operand("s", f"%arg_{INPUT_SCALE}", ("k",), scale[0], MLIR_TYPES[scale[1]])
            value = scaled_input(self.build, rows, value, stored)
        if panels.blocks == 1 and use.stride >= panels.block:
            # What stands behind the weight's inputs is zero: it may be the padding.
            value = self.first_columns(value, use.stride, panels.block)
            value = self.build.expand(
                value, (rows, panels.block), [[rows], [1, panels.block]], "f32"
            )
        else:
            value = self.in_blocks(
                self.first_columns(value, use.stride, panels.format.shape[1]), panels
            )
        if use.instructions.dots is None:
            return value
        grid = (panels.blocks, rows)
        if use.tiled:
            kernel, grid = prepare_tiles(use.instructions, self.tiling(use)), (rows, 1)
        elif shared := panels.rounded_blocks:
            kernel = digits.prepare_rounded(
                use.instructions, rows, panels.blocks, panels.block, shared, panels.picked
            )
        else:
            sizes = rows, panels.blocks, panels.block
            kernel = digits.prepare(use.instructions, *sizes, panels.picked)
        blocks = tensor_type((rows, panels.blocks, panels.block), "f32")
        return self.dispatch(kernel, grid, [(value, blocks)], words)

    def in_blocks(self, value: str, panels: Panels) -> str:
        """`[rows, in] -> [rows, blocks, block]`; every scale group is padded to whole blocks."""
        rows, groups, group = self.rows, panels.groups, panels.group
        span = panels.group_blocks * panels.block
        value = self.build.expand(value, (rows, groups * group), [[rows], [groups, group]], "f32")
        value = self.build.pad_end(value, (rows, groups, group), 2, span, "f32")
        parts = [panels.group_blocks, panels.block]
        value = self.build.expand(value, (rows, groups, span), [[rows], [groups], parts], "f32")
        return self.build.collapse(
            value, [[rows], [groups, panels.group_blocks], [panels.block]], "f32"
        )

    def dispatch(
        self, kernel: Kernel, grid: Sequence[int], operands: Sequence[tuple[str, str]], result: str
    ) -> str:
        """Call a kernel on operands of (value, type)."""
        self.executables[kernel.name] = kernel.text()
        return dispatch(self.build, entry_of(kernel.name), grid, operands, result)

    def first_columns(self, value: str, width: int, out: int) -> str:
        """The first `out` columns."""
        if width == out:
            return value
        source = tensor_type((self.rows, width), "f32")
        target = tensor_type((self.rows, out), "f32")
        return self.build.value(
            f"tensor.extract_slice {value}[0, 0] [{self.rows}, {out}] [1, 1] : {source} to {target}"
        )
