"""Our kernels for NVIDIA GPUs."""

from collections.abc import Mapping, Sequence
from typing import Any

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.cuda import tiles
from trinity.lowering.kernels.cuda.code import CODE
from trinity.lowering.kernels.cuda.device import OBJECTS
from trinity.lowering.kernels.cuda.linear import digits_type, tile_kernels, tile_product
from trinity.lowering.kernels.cuda.tiles import Tiles
from trinity.lowering.kernels.decoder_calls import Typed
from trinity.lowering.kernels.kernel_storage import KernelStorage
from trinity.lowering.kernels.lanes.block import Linears, fused_kernels
from trinity.lowering.kernels.lanes.decoder import one_token
from trinity.lowering.kernels.lanes.dispatches import Dispatches
from trinity.lowering.kernels.lanes.linear import lane_kernels, lane_product
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.strips import refusal as refused_by_strips
from trinity.lowering.kernels.target_kernels import FusedKernel, TargetKernels
from trinity.methods.formats import WeightFormat


def refusal(weight_format: WeightFormat) -> str | None:
    """Why neither tiles nor strips are of use to a format, or None."""
    reason = tiles.refusal(weight_format)
    dense = weight_format.dtype == "float32" and weight_format.pattern is None
    return reason if reason is None or dense else refused_by_strips(weight_format)


def storage(weight_format: WeightFormat) -> KernelStorage:
    """Tiles where they hold a format, else strips."""
    tiled = tiles.refusal(weight_format) is None
    return Tiles(weight_format) if tiled else Strips(weight_format)


def product(
    made: Dispatches, weight_format: WeightFormat, x: Typed, place: str, added: str | None
) -> str:
    """See `Product`."""
    stored = storage(weight_format)
    if isinstance(stored, Strips):
        return lane_product(made, stored, 1, x[0], place, added)
    assert isinstance(stored, Tiles)
    return tile_product(made, stored, 1, "float32", x, place)


def adds(weight_format: WeightFormat) -> bool:
    """Whether a product of it adds something itself: those of tiles do not."""
    return isinstance(storage(weight_format), Strips)


def takes(formats: Sequence[WeightFormat]) -> str:
    """Digits, where all of them are tiles that take inputs in whole blocks and as they are."""
    found, width = [storage(of) for of in formats], formats[0].shape[1]
    if all(isinstance(of, Tiles) and of.plain_inputs for of in found):
        return digits_type(width)
    return one_token(width)


LINEARS = Linears(refusal, storage, product, adds, takes)


class CudaKernels(TargetKernels):
    """Products on tensor cores, and of formats that tiles do not hold an output a lane, whole
    blocks at one token and attention of many tokens, from PTX that is part of the package.
    """

    objects = OBJECTS

    def refusal(self, weight_format: WeightFormat) -> str | None:
        """See `TargetKernels`."""
        return refusal(weight_format)

    def storage(self, weight_format: WeightFormat) -> KernelStorage:
        """See `TargetKernels`."""
        return storage(weight_format)

    def linear(self, name: str, weight_format: WeightFormat, rows: int, dtype: str) -> KernelCode:
        """See `TargetKernels`.  Lanes multiply in float32, whatever the model's numbers are."""
        if tiles.refusal(weight_format):
            return lane_kernels(name, Strips(weight_format), rows, CODE)
        return tile_kernels(name, Tiles(weight_format), rows, dtype)

    @property
    def fused(self) -> Mapping[str, FusedKernel[Any]]:  # as in `TargetKernels`
        """See `TargetKernels`."""
        return fused_kernels(CODE, LINEARS)


KERNELS = CudaKernels()
