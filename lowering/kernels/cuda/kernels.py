"""Our kernels for NVIDIA GPUs."""

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.cuda.device import OBJECTS
from trinity.lowering.kernels.cuda.linear import tile_kernels
from trinity.lowering.kernels.cuda.tiles import Tiles, refusal
from trinity.lowering.kernels.target_kernels import TargetKernels
from trinity.methods.formats import WeightFormat


class CudaKernels(TargetKernels):
    """Products on tensor cores, from PTX that is part of the package."""

    objects = OBJECTS

    def refusal(self, weight_format: WeightFormat) -> str | None:
        """See `TargetKernels`."""
        return refusal(weight_format)

    def storage(self, weight_format: WeightFormat) -> Tiles:
        """See `TargetKernels`."""
        return Tiles(weight_format)

    def linear(self, name: str, weight_format: WeightFormat, rows: int, dtype: str) -> KernelCode:
        """See `TargetKernels`."""
        return tile_kernels(name, Tiles(weight_format), rows, dtype)


KERNELS = CudaKernels()
