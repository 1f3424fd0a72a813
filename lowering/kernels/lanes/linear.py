"""One compressed linear as launches of `product.cuh`, in text for IREE."""

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.lanes.dispatches import Dispatches
from trinity.lowering.kernels.lanes.executable import Compiled
from trinity.lowering.kernels.lanes.launch import Launch, launches
from trinity.lowering.kernels.padded_panels import BLOCK
from trinity.lowering.kernels.strip_calls import activations, strip_function, whole
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.mlir.builder import tensor_type


def lane_kernels(name: str, strips: Strips, rows: int, code: Compiled) -> KernelCode:
    """The private function `x: [rows, in], storage... -> y: [rows, out]`, all in float32."""
    made = Dispatches(code)
    y = lane_product(made, strips, rows)
    result = [(y, tensor_type((rows, strips.format.shape[0]), "f32"))]
    function = strip_function(made.build, name, strips, rows, result)
    return KernelCode(name, function, made.executables)


def lane_product(
    made: Dispatches,
    strips: Strips,
    rows: int,
    x: str = "%arg_x",
    place: str = "",
    added: str | None = None,
) -> str:
    """A linear.

    x: [rows, in]   place: before the names of its tensors, among the function's arguments
    added: what the product is added to, [rows, out]   -> [rows, out]
    """
    shapes, out = strips.shapes(), tensor_type((rows, strips.format.shape[0]), "f32")
    found: dict[Launch, str] = {}
    low = ""
    for launch in launches(strips, rows, added is not None):
        kind = tensor_type((rows, launch.strips.blocks * BLOCK), "f32")
        given = low
        if launch.prefix != "B_":
            given = activations(made.build, launch.strips, rows, place + launch.prefix, x)
        before, after = (given, kind), launch.after
        if after:
            before = found[after], result_type(after)
        elif launch.added:
            before = str(added), out
        stored = f"%arg_{place}{launch.tensor}", tensor_type(*shapes[launch.tensor])
        operands = [(given, kind), stored, before]
        found[launch] = low = made.dispatch(
            launch.entry, launch.grid, operands, result_type(launch), launch.numbers
        )
    parts = [(value, result_type(launch)) for launch, value in found.items() if not launch.prefix]
    return whole(made.build, strips, rows, parts)


def result_type(launch: Launch) -> str:
    """Of what a kernel writes."""
    return tensor_type((launch.tokens, launch.outputs), "f32")
