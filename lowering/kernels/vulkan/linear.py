"""One compressed linear as a function that dispatches our Vulkan kernels, in text for IREE."""

from trinity.lowering.kernels.calls import KernelCode, linear_arguments
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan.dispatches import Dispatches
from trinity.lowering.mlir.builder import tensor_type


def strip_kernels(name: str, strips: Strips, rows: int) -> KernelCode:
    """The private function `x: [rows, in], storage... -> y: [rows, out]`, all in float32."""
    made, (out, d_in) = Dispatches(), strips.format.shape
    result, kind = made.product(strips, rows), tensor_type((rows, out), "f32")
    arguments = linear_arguments(d_in, rows, strips.shapes())
    return KernelCode(name, made.build.function(name, arguments, result, kind), made.executables)
