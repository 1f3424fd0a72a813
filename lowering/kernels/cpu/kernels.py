"""Our kernels for CPUs, in the `vector` dialect."""

from collections.abc import Mapping
from typing import Any

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.cpu.block import block_kernels, block_refusal
from trinity.lowering.kernels.cpu.caches import CACHED_BITS
from trinity.lowering.kernels.cpu.cpus import Cpu
from trinity.lowering.kernels.cpu.flash import attention_kernels, attention_refusal
from trinity.lowering.kernels.cpu.flavour import instructions_of, missing_here
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Flavour, Instructions, for_type
from trinity.lowering.kernels.cpu.kernel_text import LANES
from trinity.lowering.kernels.cpu.linear import linear_kernels
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.kernels.cpu.vectors import VectorStorage, vector_kernels
from trinity.lowering.kernels.decoder_parts import ATTENTION, BLOCK
from trinity.lowering.kernels.target_kernels import FusedKernel, TargetKernels
from trinity.methods.formats import CacheFormat, WeightFormat


class CpuKernels(TargetKernels):
    """Products of every format, whole blocks at one token, attention of many tokens."""

    def __init__(self, cpu: Cpu | None = None) -> None:
        """cpu: a kind of processor that is not this machine's"""
        self.cpu = cpu

    @property
    def instructions(self) -> Instructions:
        """What the processor may use."""
        return instructions_of(self.cpu)

    @property
    def flavour(self) -> Flavour:
        """See `TargetKernels`."""
        return self.instructions.flavour

    def lacking(self, flavour: str | None) -> str | None:
        """See `TargetKernels`."""
        for known in INSTRUCTIONS:
            if known == flavour and (missing := missing_here(known)):
                return f"{flavour}, and {missing}. Compile it here, for the host: it does without"
        return None

    def refusal(self, weight_format: WeightFormat) -> str | None:
        """None, but where outputs of one vector would have different grids of scales."""
        nested = weight_format.nested
        if nested and nested.rows % LANES:
            return (
                f"grids of scales are of {nested.rows} outputs, and kernels read those of whole "
                f"vectors of {LANES}"
            )
        return None

    def storage(self, weight_format: WeightFormat) -> Panels | VectorStorage:
        """See `TargetKernels`."""
        if weight_format.vectors:
            return VectorStorage(weight_format)
        return self.instructions.panels(weight_format)

    def linear(self, name: str, weight_format: WeightFormat, rows: int, dtype: str) -> KernelCode:
        """See `TargetKernels`."""
        made = for_type(self.instructions, dtype)
        stored = self.storage(weight_format)
        if isinstance(stored, VectorStorage):
            return vector_kernels(name, stored, rows, made)
        return linear_kernels(name, stored, rows, made)

    def cache_refusal(self, cache: CacheFormat) -> str | None:
        """See `TargetKernels`."""
        if cache.together > 1 or cache.bits not in CACHED_BITS:
            bits = " and ".join(map(str, CACHED_BITS))
            return f"kernels read caches of {bits} bits a number, each position rounded by itself"
        return None

    @property
    def fused(self) -> Mapping[str, FusedKernel[Any]]:  # as in `TargetKernels`
        """See `TargetKernels`."""
        made = self.instructions
        return {
            BLOCK: FusedKernel(
                lambda block: block_refusal(block, made),
                lambda block: block_kernels(block, made),
            ),
            ATTENTION: FusedKernel(
                attention_refusal,
                lambda attention: attention_kernels(attention, made),
            ),
        }
