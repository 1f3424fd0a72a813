"""Dispatches of shaders in one function, and the executables that they name."""

from collections.abc import Sequence

from trinity.lowering.kernels.calls import dispatch, dispatch_in_place
from trinity.lowering.kernels.decoder_calls import Typed
from trinity.lowering.kernels.padded_panels import BLOCK
from trinity.lowering.kernels.strip_calls import activations, whole
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan import dots, tiles
from trinity.lowering.kernels.vulkan.executable import Shader, Workgroup
from trinity.lowering.kernels.vulkan.launch import After, Launch, Term, launches
from trinity.lowering.mlir.builder import Builder, tensor_type


class Dispatches:
    """The lines of one function."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.build = Builder()
        self._shaders: dict[str, Shader] = {}

    @property
    def executables(self) -> tuple[tuple[str, str], ...]:
        """What was dispatched, by name."""
        return tuple((name, shader.text()) for name, shader in self._shaders.items())

    def dispatch(
        self,
        shader: Shader,
        grid: Sequence[int],
        operands: Sequence[Typed],
        result: str,
        numbers: Sequence[int],
    ) -> str:
        """A call that makes one tensor.  result: its type  -> its value"""
        self._shaders[shader.name] = shader
        return dispatch(self.build, shader.entry, grid, operands, result, numbers)

    def in_place(
        self,
        shader: Shader,
        grid: Sequence[int],
        operands: Sequence[Typed],
        written: Sequence[str],
        numbers: Sequence[int],
    ) -> list[str]:
        """A call that writes into some of its operands.  -> their values after it"""
        self._shaders[shader.name] = shader
        return dispatch_in_place(self.build, shader.entry, grid, operands, written, numbers)

    def product(
        self,
        strips: Strips,
        rows: int,
        x: str = "%arg_x",
        place: str = "",
        after: tuple[After, str] | None = None,
    ) -> str:
        """A linear.

        x: [rows, in]   place: before the names of its tensors, among the function's arguments
        after: what becomes of the product and of other numbers [rows, out]   -> [rows, out]
        """
        shapes, made = strips.shapes(), dict[Launch, str]()
        low, parts = launches(strips, rows, after[0] if after else None)
        for launch in (*low, *parts):
            operands = []
            for term, tensor in launch.operands:
                if term.source == "low":
                    kind = tensor_type((rows, term.strips.blocks * BLOCK), "f32")
                    operands.append((made[low[0]], kind))
                else:
                    operands.append(self._given(term, rows, x, place))
                operands.append((f"%arg_{place}{tensor}", tensor_type(*shapes[tensor])))
            out = tensor_type((rows, strips.format.shape[0]), "f32")
            operands.append((after[1], out) if after and not launch.low else operands[0])
            work, result = (len(launch.panels), rows), result_type(launch)
            made[launch] = self.dispatch(shader_of(launch), work, operands, result, launch.numbers)
        found = [(made[launch], result_type(launch)) for launch in parts]
        return whole(self.build, strips, rows, found)

    def _given(self, term: Term, rows: int, x: str, place: str) -> Typed:
        """A linear's input as a term's shader reads it."""
        if dots.dotted(term.strips):
            return dots.byte_inputs(self.build, term.strips, rows, x)
        value = activations(self.build, term.strips, rows, place + term.prefix, x)
        return value, tensor_type((rows, term.strips.blocks * BLOCK), "f32")


def shader_of(launch: Launch) -> Shader:
    """What computes a part of a linear."""
    file = "dots" if dots.dotted(launch.first.strips) else "product"
    workgroup = Workgroup(launch.lanes, launch.most_slices, launch.tile)
    if size := tiles.tile_of(launch):
        file, workgroup = "tile", Workgroup(tiles.LANES, tiles.ROWS, size, tiles.PANELS)
    return Shader(file, workgroup, launch.tile, launch.constants, len(launch.numbers), 5, 1)


def result_type(launch: Launch) -> str:
    """Of what a product's shader writes."""
    return tensor_type((launch.tokens, launch.outputs), "f32")
