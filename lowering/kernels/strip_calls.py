"""What functions on strips have in common, whichever kernels they dispatch."""

from collections.abc import Sequence

from trinity.lowering.kernels.calls import linear_arguments
from trinity.lowering.kernels.padded_panels import padded_input
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.mlir.builder import Builder, tensor_type
from trinity.lowering.rows.changed_inputs import rounded_input


def activations(
    build: Builder, strips: Strips, rows: int, prefix: str, value: str = "%arg_x"
) -> str:
    """The input of a weight, every scale group padded to whole blocks.

    The same text twice is computed once.  prefix: of the names of the weight's tensors
    """
    _, d_in = strips.format.shape
    if inputs := strips.format.inputs:
        value = rounded_input(build, rows, value, d_in, inputs)
    return padded_input(build, strips, rows, value, prefix)


def strip_function(
    build: Builder, name: str, strips: Strips, rows: int, parts: Sequence[tuple[str, str]]
) -> str:
    """The private function of a linear, whose outputs are those of its parts (value, type)."""
    kind = tensor_type((rows, strips.format.shape[0]), "f32")
    result = whole(build, strips, rows, parts)
    arguments = linear_arguments(strips.format.shape[1], rows, strips.shapes())
    return build.function(name, arguments, result, kind)


def whole(build: Builder, strips: Strips, rows: int, parts: Sequence[tuple[str, str]]) -> str:
    """The outputs of a linear's parts (value, type), one behind another.  -> [rows, out]"""
    if len(parts) == 1:
        return parts[0][0]
    values, types = (", ".join(of) for of in zip(*parts, strict=True))
    kind = tensor_type((rows, strips.format.shape[0]), "f32")
    return build.value(f"tensor.concat dim(1) {values} : ({types}) -> {kind}")
