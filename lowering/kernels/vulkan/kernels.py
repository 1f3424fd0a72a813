"""Our kernels for Vulkan."""

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.strips import Strips, refusal
from trinity.lowering.kernels.target_kernels import TargetKernels
from trinity.lowering.kernels.vulkan.device import OBJECTS
from trinity.lowering.kernels.vulkan.linear import strip_kernels
from trinity.methods.formats import WeightFormat


class VulkanKernels(TargetKernels):
    """Products in compute shaders, from SPIR-V that is part of the package."""

    objects = OBJECTS

    def refusal(self, weight_format: WeightFormat) -> str | None:
        """See `TargetKernels`."""
        return refusal(weight_format)

    def storage(self, weight_format: WeightFormat) -> Strips:
        """See `TargetKernels`."""
        return Strips(weight_format)

    def linear(self, name: str, weight_format: WeightFormat, rows: int, dtype: str) -> KernelCode:
        """See `TargetKernels`; all numbers are float32, whatever the model's are."""
        return strip_kernels(name, Strips(weight_format), rows)


KERNELS = VulkanKernels()
