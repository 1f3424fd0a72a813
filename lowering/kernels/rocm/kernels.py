"""Our kernels for AMD GPUs."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.lanes.block import LANE_LINEARS, fused_kernels
from trinity.lowering.kernels.lanes.executable import Compiled
from trinity.lowering.kernels.lanes.linear import lane_kernels
from trinity.lowering.kernels.rocm.code import SOURCES
from trinity.lowering.kernels.rocm.code_object import foreign, inside, require
from trinity.lowering.kernels.rocm.device import OBJECTS, ROCM_CODE, file_of
from trinity.lowering.kernels.strips import Strips, refusal
from trinity.lowering.kernels.target_kernels import FusedKernel, TargetKernels
from trinity.methods.formats import WeightFormat


@dataclass(frozen=True)
class RocmKernels(TargetKernels):
    """Products, whole blocks at one token and attention of many tokens in HIP kernels, from code
    objects that are part of the package.

    architecture: which
    """

    architecture: str

    objects = OBJECTS

    @cached_property
    def code(self) -> Compiled:
        """The code objects; LoweringError if one is not what modules call."""
        files = {file_of(name, self.architecture): of for name, of in SOURCES.items()}
        for path, entries in files.items():
            require((OBJECTS / path).read_bytes(), self.architecture, entries)
        return Compiled(ROCM_CODE, files)

    def refusal(self, weight_format: WeightFormat) -> str | None:
        """See `TargetKernels`."""
        return refusal(weight_format)

    def storage(self, weight_format: WeightFormat) -> Strips:
        """See `TargetKernels`."""
        return Strips(weight_format)

    def linear(self, name: str, weight_format: WeightFormat, rows: int, dtype: str) -> KernelCode:
        """See `TargetKernels`; all numbers are float32, whatever the model's are."""
        return lane_kernels(name, Strips(weight_format), rows, self.code)

    @property
    def fused(self) -> Mapping[str, FusedKernel[Any]]:  # as in `TargetKernels`
        """See `TargetKernels`."""
        return fused_kernels(self.code, LANE_LINEARS)

    def fault(self, module: bytes) -> str | None:
        """See `TargetKernels`: no code, or code for another architecture."""
        found = inside(module)
        if not found:
            return f"it holds no code for {self.architecture}"
        faults = [why for code in found for why in foreign(code, self.architecture)]
        if not faults:
            return None
        return f"it holds code for another GPU than {self.architecture}: {faults[0]}"
