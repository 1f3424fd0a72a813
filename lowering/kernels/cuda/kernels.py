"""Our kernels for NVIDIA GPUs."""

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.cuda import tiles
from trinity.lowering.kernels.cuda.device import CUDA_CODE, OBJECTS
from trinity.lowering.kernels.cuda.linear import tile_kernels
from trinity.lowering.kernels.cuda.tiles import Tiles
from trinity.lowering.kernels.kernel_storage import KernelStorage
from trinity.lowering.kernels.lanes.launch import PAIRS, TOKENS
from trinity.lowering.kernels.lanes.linear import Compiled, lane_kernels
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.strips import refusal as refused_by_strips
from trinity.lowering.kernels.target_kernels import TargetKernels
from trinity.methods.formats import WeightFormat

# A file for each kind and mask: the driver compiles all of a file when a module is loaded.
LANES = Compiled(
    CUDA_CODE,
    {
        f"lanes_{kind}_{mask}.ptx": tuple(f"lanes_{kind}_{mask}_{count}" for count in TOKENS)
        for kind, mask in PAIRS
    },
)


class CudaKernels(TargetKernels):
    """Products on tensor cores, and of formats that tiles do not hold an output a lane, from PTX
    that is part of the package.
    """

    objects = OBJECTS

    def refusal(self, weight_format: WeightFormat) -> str | None:
        """See `TargetKernels`."""
        reason = tiles.refusal(weight_format)
        dense = weight_format.dtype == "float32" and weight_format.pattern is None
        return reason if reason is None or dense else refused_by_strips(weight_format)

    def storage(self, weight_format: WeightFormat) -> KernelStorage:
        """See `TargetKernels`."""
        tiled = tiles.refusal(weight_format) is None
        return Tiles(weight_format) if tiled else Strips(weight_format)

    def linear(self, name: str, weight_format: WeightFormat, rows: int, dtype: str) -> KernelCode:
        """See `TargetKernels`.  Lanes multiply in float32, whatever the model's numbers are."""
        if tiles.refusal(weight_format):
            return lane_kernels(name, Strips(weight_format), rows, LANES)
        return tile_kernels(name, Tiles(weight_format), rows, dtype)


KERNELS = CudaKernels()
