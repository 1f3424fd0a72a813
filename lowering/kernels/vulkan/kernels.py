"""Our kernels for Vulkan."""

from collections.abc import Mapping
from typing import Any

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.decoder_calls import attention_refusal
from trinity.lowering.kernels.decoder_parts import ATTENTION, BLOCK
from trinity.lowering.kernels.strips import Strips, refusal
from trinity.lowering.kernels.target_kernels import FusedKernel, TargetKernels
from trinity.lowering.kernels.vulkan.attention import attention_kernels
from trinity.lowering.kernels.vulkan.block import block_kernels, block_refusal
from trinity.lowering.kernels.vulkan.device import OBJECTS
from trinity.lowering.kernels.vulkan.linear import strip_kernels
from trinity.methods.formats import WeightFormat


class VulkanKernels(TargetKernels):
    """Products of every format, whole blocks at one token and attention of many tokens in compute
    shaders, from SPIR-V that is part of the package.
    """

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

    @property
    def fused(self) -> Mapping[str, FusedKernel[Any]]:  # as in `TargetKernels`
        """See `TargetKernels`."""
        return {
            BLOCK: FusedKernel(block_refusal, block_kernels),
            ATTENTION: FusedKernel(attention_refusal, attention_kernels),
        }


KERNELS = VulkanKernels()
