"""Our kernels for AMD GPUs."""

from dataclasses import dataclass
from functools import cached_property

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.lanes.launch import ENTRIES
from trinity.lowering.kernels.lanes.linear import Compiled, lane_kernels
from trinity.lowering.kernels.rocm.code_object import foreign, inside, require
from trinity.lowering.kernels.rocm.device import OBJECTS, ROCM_CODE, file_of
from trinity.lowering.kernels.strips import Strips, refusal
from trinity.lowering.kernels.target_kernels import TargetKernels
from trinity.methods.formats import WeightFormat


@dataclass(frozen=True)
class RocmKernels(TargetKernels):
    """Products in HIP kernels, from a code object that is part of the package.

    architecture: which
    """

    architecture: str

    objects = OBJECTS

    @cached_property
    def code(self) -> Compiled:
        """The code object; LoweringError if it is not what modules call."""
        path = file_of(self.architecture)
        require((OBJECTS / path).read_bytes(), self.architecture)
        return Compiled(ROCM_CODE, {path: ENTRIES})

    def refusal(self, weight_format: WeightFormat) -> str | None:
        """See `TargetKernels`."""
        return refusal(weight_format)

    def storage(self, weight_format: WeightFormat) -> Strips:
        """See `TargetKernels`."""
        return Strips(weight_format)

    def linear(self, name: str, weight_format: WeightFormat, rows: int, dtype: str) -> KernelCode:
        """See `TargetKernels`; all numbers are float32, whatever the model's are."""
        return lane_kernels(name, Strips(weight_format), rows, self.code)

    def fault(self, module: bytes) -> str | None:
        """See `TargetKernels`: no code, or code for another architecture."""
        found = inside(module)
        if not found:
            return f"it holds no code for {self.architecture}"
        faults = [why for code in found for why in foreign(code, self.architecture)]
        if not faults:
            return None
        return f"it holds code for another GPU than {self.architecture}: {faults[0]}"
