"""A whole decoder block at one token as one kernel, in phases.

    x1 = x + o(attention(q(n), k(n), v(n))),   n = norm(x)
    y = x1 + down(silu(gate(m)) * up(m)),      m = norm(x1)

The linears' adapters and biases are part of their products; `phases` says why this is one dispatch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.cpu import digits
from trinity.lowering.kernels.cpu.attention import AttentionBuffers, score_room, write_head
from trinity.lowering.kernels.cpu.caches import Cache, cache_of
from trinity.lowering.kernels.cpu.code_terms import prepared
from trinity.lowering.kernels.cpu.instructions import Instructions, for_rows
from trinity.lowering.kernels.cpu.kernel_text import FLOATS, LANES, Buffer, Kernel
from trinity.lowering.kernels.cpu.linear import of_factor
from trinity.lowering.kernels.cpu.outlier_term import OutlierTerm
from trinity.lowering.kernels.cpu.panels import INPUT_SCALE, Panels, aligned
from trinity.lowering.kernels.cpu.phases import LINE, Part, Phases, phased_function
from trinity.lowering.kernels.cpu.product import product_grid, write_product
from trinity.lowering.kernels.cpu.product_terms import Term, term_of
from trinity.lowering.kernels.cpu.weight_in_kernel import Stored
from trinity.lowering.kernels.decoder_parts import MLP, NORMS, QKVO, BlockFormat
from trinity.methods.formats import WeightFormat


def block_refusal(block: BlockFormat, instructions: Instructions) -> str | None:
    """Why a block has no kernel of its own, or None."""
    if block.heads.width % (2 * LANES) or block.hidden % LANES:
        return f"a head is not a multiple of {2 * LANES} wide, or the block not of {LANES}"
    for name, weight_format in block.linears.items():
        if reason := _linear_refusal(name, weight_format, block, instructions):
            return f"{name}: {reason}"
    return None


def _linear_refusal(
    name: str, weight_format: WeightFormat, block: BlockFormat, instructions: Instructions
) -> str | None:
    if weight_format.vectors:
        return "its weight is vectors of tables, which panels do not hold"
    panels = instructions.panels(weight_format)
    padded = panels.panels * panels.rows != weight_format.shape[0]
    if padded and (name in block.biases or name in (QKVO[-1], MLP[-1])):
        return "its outputs are padded"
    if weight_format.inputs and weight_format.inputs.turned:
        return "its inputs are turned"
    if weight_format.inputs and weight_format.outliers:
        return "its inputs are rounded, and its outliers are multiplied as floats"
    if weight_format.inputs and not (panels.rounded_blocks and instructions.dots):
        return "its inputs are rounded as floats"
    for part in (panels, *(f for key, f in panels.factors.items() if key == "A")):
        if part.codes and part.blocks * part.block != part.format.shape[1]:
            return "its inputs are padded"
    if panels.factors:
        low, high = panels.factors["A"], panels.factors["B"]
        room = low.panels * low.rows if high.blocks == 1 else high.format.shape[1]
        if high.codes and high.blocks * high.block > room:
            return "its adapter's rank is padded"
    return None


def block_kernels(block: BlockFormat, instructions: Instructions) -> KernelCode:
    """The private function `(*activations, *parameters) -> hidden, keys, values`.

    It writes the caches in place.
    """
    return _Writer(block, instructions).written()


@dataclass(frozen=True)
class _Region:
    """Bytes of the scratch memory."""

    kernel: Kernel
    argument: str
    offset: int

    def buffer(self, shape: Sequence[int], element: str = "f32") -> Buffer:
        """Those bytes as an array."""
        return self.kernel.region(self.argument, self.offset, shape, element)


@dataclass(frozen=True)
class _Product:
    """A linear whose terms are bound; A's term, where it has an adapter, comes first."""

    terms: list[Term]
    y0: Buffer | None
    y: Buffer
    low: tuple[Term, Buffer] | None


class _Inputs:
    """A vector that some products take, in every form that one of them wants."""

    def __init__(self, writer: "_Writer", width: int) -> None:
        self.writer, self.width = writer, width
        self.region = writer.scratch((1, width))
        self.floats = self.region.buffer((1, width))
        self._steps: list[Callable[[], None]] = []
        self._buffers: dict[tuple[object, ...], Buffer] = {}

    def of(self, panels: Panels, scale: Buffer | None, element: str) -> Buffer:
        """As a product with these panels wants it.  scale: of every input, and its element"""
        if not panels.codes and scale is None:
            return self.floats
        made = self.writer.instructions.of(panels)
        digits_too = made.dots is not None
        key = (panels.blocks, panels.block, panels.rounded_blocks, panels.picked, scale, digits_too)
        if key not in self._buffers:
            self._buffers[key] = self._add(panels, made, scale, element)
        return self._buffers[key]

    def _add(
        self, panels: Panels, made: Instructions, scale: Buffer | None, element: str
    ) -> Buffer:
        writer, kernel, region = self.writer, self.writer.kernel, self.region
        if scale is not None:
            region = writer.scratch((1, self.width))
            scaled = region.buffer((1, self.width))
            self._steps.append(lambda: self._scale(scaled, scale, element))
        floats = region.buffer((1, panels.blocks, panels.block))
        if made.dots is None:
            return floats
        shape, words = prepared(panels, 1, made)
        found = writer.scratch(shape).buffer(shape, words)
        self._steps.append(lambda: _write_digits(kernel, made, panels, (floats, found)))
        return found

    def _scale(self, scaled: Buffer, scale: Buffer, element: str) -> None:
        kernel = self.writer.kernel
        zero = kernel.constant(0)
        with kernel.loop(self.width, LANES) as loop:
            by = scale.load([loop.index], f"vector<{LANES}x{element}>")
            if element != "f32":
                by = kernel.value(f"arith.extf {by} : vector<{LANES}x{element}> to {FLOATS}")
            x = self.floats.load([zero, loop.index], FLOATS)
            x = kernel.value(f"arith.mulf {x}, {by} : {FLOATS}")
            scaled.store(x, [zero, loop.index], FLOATS)

    def write(self) -> None:
        """Make every form from the floats."""
        for step in self._steps:
            step()


def _write_digits(
    kernel: Kernel, instructions: Instructions, panels: Panels, buffers: tuple[Buffer, Buffer]
) -> None:
    with kernel.loop(panels.blocks) as loop:
        here = kernel.constant(0), loop.index
        if shared := panels.rounded_blocks:
            sizes = panels.block, shared, panels.picked
            digits.write_rounded(kernel, instructions, buffers, here, sizes)
        else:
            exact = panels.block, panels.picked
            digits.write_exact(kernel, instructions, buffers, here, exact)


class _Writer:
    """Writes one block's kernel and function."""

    def __init__(self, block: BlockFormat, instructions: Instructions) -> None:
        self.block, self.instructions = block, for_rows(instructions, 1)
        self.kernel = Kernel(f"{block.function}_kernel")
        self.operands: list[str] = []
        self._shapes = {**block.activations(), **block.parameters(self.panels)}
        self._end = 0
        self._scratch = ""

    def panels(self, weight_format: WeightFormat) -> Panels:
        """Where a linear's entries stand."""
        return self.instructions.panels(weight_format)

    def written(self) -> KernelCode:
        """The function and its executable."""
        block, kernel = self.block, self.kernel
        hidden = self.bind("hidden", (1, block.hidden))
        found = {
            name: self.bind(name, (1, block.heads.width) if name in ("cos", "sin") else None)
            for name in ("cos", "sin", "position")
        }
        caches = [self.cache(name) for name in ("keys", "values")]
        norms = [self.bind(name, (1, block.hidden)) for name in NORMS]
        out = kernel.output((1, block.hidden), "f32")
        self._scratch = kernel.output_argument()
        position = found["position"].load_scalar([kernel.constant(0)])
        position = kernel.value(f"arith.index_cast {position} : i64 to index")
        phases = [
            *self.attention(hidden, norms[0], found, caches, position),
            *self.mlp(norms[1], out),
        ]
        self.operands.append("counters")
        counters = kernel.binding((len(phases), 2, LINE), "i32")
        writer = Phases(kernel, counters, len(phases), self.instructions)
        with kernel.when(writer.unfinished(sum(number for number, _ in phases[-1]))):
            for parts in phases:
                writer.write(parts)
        function = phased_function(
            block.function, kernel, self._shapes, self.operands, len(phases), self._end
        )
        return KernelCode(block.function, function, ((kernel.name, kernel.text()),))

    def attention(
        self,
        hidden: Buffer,
        norm: Buffer,
        found: Mapping[str, Buffer],
        caches: Sequence[Cache],
        position: str,
    ) -> Iterator[Sequence[Part]]:
        """x1, which is left in `self.middle`."""
        block, kernel = self.block, self.kernel
        x = _Inputs(self, block.hidden)
        products = [self.linear(name, x) for name in QKVO[:-1]]
        mixed = _Inputs(self, block.linears[QKVO[-1]].shape[1])
        self.middle = self.scratch((1, block.hidden)).buffer((1, block.hidden))
        last = self.linear(QKVO[-1], mixed, hidden, self.middle)
        scores = (block.heads.heads, score_room(block.heads.cache_length))
        (q, k, v), (keys, values) = (product.y for product in products), caches
        buffers = AttentionBuffers(
            q,
            k,
            v,
            found["cos"],
            found["sin"],
            keys,
            values,
            self.scratch(scores).buffer(scores),
            mixed.floats,
        )
        yield [(1, lambda _: self.normed(hidden, norm, x))]
        yield from self.products(products)
        yield [
            (
                block.heads.heads,
                lambda head: write_head(kernel, block.heads, buffers, position, head),
            )
        ]
        yield [(1, lambda _: mixed.write())]
        yield from self.products([last])

    def mlp(self, norm: Buffer, out: Buffer) -> Iterator[Sequence[Part]]:
        """The block's result from `self.middle`."""
        block, middle = self.block, self.middle
        x = _Inputs(self, block.hidden)
        gate, up = (self.linear(name, x) for name in MLP[:-1])
        gated = _Inputs(self, block.linears[MLP[-1]].shape[1])
        last = self.linear(MLP[-1], gated, middle, out)
        yield [(1, lambda _: self.normed(middle, norm, x))]
        yield from self.products([gate, up])
        yield [(1, lambda _: self.gated(gate.y, up.y, gated))]
        yield from self.products([last])

    def linear(
        self, name: str, x: _Inputs, y0: Buffer | None = None, y: Buffer | None = None
    ) -> _Product:
        """Bind a linear's tensors.  y0: what it is added to, its bias if not given"""
        kernel, panels = self.kernel, self.panels(self.block.linears[name])
        shape = (1, panels.panels * panels.rows)
        if name in self.block.biases:
            assert y0 is None  # no model of this kind has a bias where there is a residual
            y0 = self.bind(f"{name}.bias", shape)
        scale, element = None, "f32"
        if INPUT_SCALE in panels.shapes():
            scale = self.bind(f"{name}.{INPUT_SCALE}")
            element = self._shapes[f"{name}.{INPUT_SCALE}"][1]
        self.operands.append(f"{name}.{panels.tensor}")
        weight = kernel.argument()
        x_base = x.of(panels, scale, element)
        base = Stored.of(kernel, weight, panels, None)
        terms: list[Term] = [term_of(kernel, base, x_base, self.instructions)]
        if panels.format.outliers:
            terms.append(OutlierTerm(kernel, base, x.floats, self.instructions))
        low = None
        if panels.factors:
            a, b = (Stored.of(kernel, weight, panels, factor) for factor in ("A", "B"))
            rank = (1, a.panels.panels * a.panels.rows)
            between = self.scratch(rank)
            x_low = x.of(a.panels, None, "f32")
            low = term_of(kernel, a, x_low, self.instructions), between.buffer(rank)
            given = (
                rank
                if not b.panels.codes
                else prepared(b.panels, 1, of_factor(self.instructions, 1))[0]
            )
            terms.append(term_of(kernel, b, between.buffer(given), of_factor(self.instructions, 1)))
        return _Product(terms, y0, y or self.scratch(shape).buffer(shape), low)

    def products(self, found: Sequence[_Product]) -> Iterator[Sequence[Part]]:
        """A phase of all adapters' A, if there are any, and one of all else."""
        lows = [product.low for product in found if product.low]
        if lows:
            yield [self.part([term], None, y) for term, y in lows]
        yield [self.part(product.terms, product.y0, product.y) for product in found]

    def part(self, terms: list[Term], y0: Buffer | None, y: Buffer) -> Part:
        """A product as a part of a phase."""
        kernel = self.kernel
        panels, _ = product_grid(terms, 1)
        return panels, lambda panel: write_product(kernel, terms, 1, (panel, None), (y0, y))

    def normed(self, source: Buffer, weight: Buffer, x: _Inputs) -> None:
        """`x = weight source / sqrt(mean(source^2) + epsilon)`, and its other forms."""
        kernel, width = self.kernel, self.block.hidden
        zero, none = kernel.constant(0), kernel.constant("0.0", FLOATS)
        with kernel.loop(width, LANES, [(none, FLOATS)]) as loop:
            part = source.load([zero, loop.index], FLOATS)
            loop.yielded = [
                kernel.value(f"vector.fma {part}, {part}, {loop.carried[0]} : {FLOATS}")
            ]
        mean = kernel.constant(1 / width, "f32")
        mean = kernel.value(f"arith.mulf {kernel.sum_of(loop.results[0])}, {mean} : f32")
        epsilon = kernel.constant(float(self.block.epsilon), "f32")
        mean = kernel.value(f"arith.addf {mean}, {epsilon} : f32")
        root = kernel.value(f"math.sqrt {mean} : f32")
        by = kernel.value(f"arith.divf {kernel.constant('1.0', 'f32')}, {root} : f32")
        by = kernel.splat(by, FLOATS)
        with kernel.loop(width, LANES) as loop:
            part = source.load([zero, loop.index], FLOATS)
            part = kernel.value(f"arith.mulf {part}, {by} : {FLOATS}")
            own = weight.load([zero, loop.index], FLOATS)
            part = kernel.value(f"arith.mulf {own}, {part} : {FLOATS}")
            x.floats.store(part, [zero, loop.index], FLOATS)
        x.write()

    def gated(self, gate: Buffer, up: Buffer, x: _Inputs) -> None:
        """`x = silu(gate) * up`, and its other forms."""
        kernel = self.kernel
        zero, one = kernel.constant(0), kernel.constant("1.0", FLOATS)
        with kernel.loop(x.width, LANES) as loop:
            at = [zero, loop.index]
            left, right = gate.load(at, FLOATS), up.load(at, FLOATS)
            power = kernel.value(f"arith.negf {left} : {FLOATS}")
            power = kernel.value(f"math.exp {power} : {FLOATS}")
            power = kernel.value(f"arith.addf {power}, {one} : {FLOATS}")
            left = kernel.value(f"arith.divf {left}, {power} : {FLOATS}")
            left = kernel.value(f"arith.mulf {left}, {right} : {FLOATS}")
            x.floats.store(left, at, FLOATS)
        x.write()

    def bind(self, name: str, shape: Sequence[int] | None = None) -> Buffer:
        """The next operand, an activation or a parameter.  shape: if not its own"""
        self.operands.append(name)
        own, element = self._shapes[name]
        return self.kernel.binding(shape or own, element)

    def cache(self, name: str) -> Cache:
        """The next operand, keys or values."""
        self.operands.append(name)
        return cache_of(self.kernel, self.kernel.argument(), self.block.heads)

    def scratch(self, shape: Sequence[int]) -> _Region:
        """New memory for an array of 32-bit elements."""
        region = _Region(self.kernel, self._scratch, self._end)
        size = prod(shape) * 4
        self._end += aligned(size)
        return region
