"""Storage for our CUDA kernels: weights in the order in which tensor cores take them.

A *panel* is 32 outputs, a *unit* as many inputs as 32 lanes hold in 16 bytes each for two tiles of
16 outputs: 64 for 4-bit codes, 128 where 2:4 keeps half of them, 32 for half-precision values.
Inputs run in *blocks* of 32; every scale group is padded to whole blocks, the last unit to its end.

| tensor          | shape, type                                            | when            |
|-----------------|--------------------------------------------------------|-----------------|
| tile_codes      | [panels, units, 2 tiles, 32 lanes, 16 bytes], uint8    | 4 bits          |
| tile_places     | [panels, units, 32 lanes, 16 bytes], uint8             | 4 bits, 2:4     |
| tile_values     | [panels, units, 2 steps, 2 tiles, 32 lanes, 8]         | half precision  |
| tile_scale      | [panels, groups, 8, 4], float                          | 4 bits          |
| tile_zero_point | shape of tile_scale, uint8                             | asymmetric      |
| input_scale     | [in], float                                            | scaled inputs   |
| B_..., A_...    | those of the adapter's factors                         | adapter         |

Lane `4 g + t` holds outputs `g` and `g + 8` of a tile: of every 16 inputs (kept ones, if 2:4) those
at `2t`, `2t + 1`, `2t + 8` and `2t + 9`, eight codes to a 32-bit word, or eight values.  Scale
`[g, i]` is that of output `8 i + g`.  Places are the operand of `mma.sp` as the PTX ISA has it: two
bits an entry, two entries of every four inputs, in ascending order.  1:2 is stored as 2:4, which it
is; any other mask as codes that mean zero.  One scale for the tensor is repeated for every output.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trinity.lowering.kernels.kernel_storage import FACTORS, Codes, Numbers
from trinity.lowering.kernels.padded_panels import (
    AS_TWO_FOUR,
    BLOCK,
    PANEL,
    PaddedPanels,
    two_of_four,
)
from trinity.lowering.rows.row_storage import raw_codes
from trinity.lowering.weight_storage import Shapes
from trinity.methods.formats import Quantized, WeightFormat

BITS = 4
HALF = ("float16", "bfloat16")


def refusal(weight_format: WeightFormat) -> str | None:
    """Why tiles cannot hold a format, or None."""
    if weight_format.inputs:
        return "inputs of 8 bits"
    if weight_format.outliers:
        return "outliers"
    for name in FACTORS if weight_format.adapter else ():
        factor = Tiles(weight_format.factor(name))
        reason = _refusal(factor.format)
        if reason is None and name == "B" and factor.groups > 1 and factor.group % BLOCK:
            # Its inputs are the other factor's outputs, which stand without gaps.
            reason = f"scale groups of {factor.group} inputs, not of whole {BLOCK}"
        if reason:
            return f"adapter {name}: {reason}"
    return _refusal(weight_format)


def _refusal(weight_format: WeightFormat) -> str | None:
    """As `refusal`, for a weight without adapter."""
    if weight_format.codebook or weight_format.row_codebook or weight_format.vectors:
        return "values of a table"
    if weight_format.grid:
        bits = weight_format.grid.bits
        return None if bits == BITS else f"codes of {bits} bits"
    if weight_format.pattern:
        return "masked floats"
    return None if weight_format.dtype in HALF else "float32 has nothing to unpack"


@dataclass(frozen=True)
class Tiles(PaddedPanels):
    """Where the entries of a weight of one format stand in tiles."""

    format: WeightFormat

    @property
    def two_four(self) -> bool:
        """Whether two of four codes are stored."""
        return self.format.pattern in AS_TWO_FOUR

    @property
    def unit(self) -> int:
        """Inputs of a unit."""
        if self.format.grid is None:
            return BLOCK
        return 4 * BLOCK if self.two_four else 2 * BLOCK

    @property
    def units(self) -> int:
        """Units of a row; the last may be padding in part."""
        return -(-self.blocks * BLOCK // self.unit)

    @property
    def width(self) -> int:
        """See `PaddedPanels`: whole units."""
        return self.units * self.unit

    @property
    def plain_inputs(self) -> bool:
        """Whether it reads inputs as they are, in whole blocks: unscaled, and without padding."""
        whole = self.group == self.padded_group and self.format.shape[1] == self.blocks * BLOCK
        readers = [self.factors["A"]] if self.factors else []
        unscaled = "input_scale" not in self.shapes()
        return whole and unscaled and all(of.plain_inputs for of in readers)

    def own_shapes(self) -> Shapes:
        """See `KernelStorage`."""
        found: Shapes = {}
        lead = (self.panels, self.units)
        if self.format.dtype:
            found["tile_values"] = ((*lead, 2, 2, 32, 8), getattr(torch, self.format.dtype))
        if grid := self.format.grid:
            found["tile_codes"] = ((*lead, 2, 32, 16), torch.uint8)
            if self.two_four:
                found["tile_places"] = ((*lead, 32, 16), torch.uint8)
            shape = (self.panels, self.groups, 8, PANEL // 8)
            found["tile_scale"] = (shape, getattr(torch, grid.scale_dtype))
            if not grid.symmetric:
                found["tile_zero_point"] = (shape, torch.uint8)
        return found

    def pack_values(self, values: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See `KernelStorage`."""
        # row: tile, half, g   input: unit, step, upper, t, e
        split = self._padded(values).view(self.panels, 2, 2, 8, self.units, 2, 2, 4, 2)
        lanes = split.permute(0, 4, 5, 1, 3, 7, 6, 2, 8)
        return {"tile_values": lanes.reshape(self.own_shapes()["tile_values"][0])}

    def unpack_values(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """See `KernelStorage`."""
        lanes = tensors["tile_values"].view(self.panels, self.units, 2, 2, 8, 4, 2, 2, 2)
        split = lanes.permute(0, 3, 7, 4, 1, 2, 6, 5, 8)
        return self._cut(split.reshape(self.panels * PANEL, self.units * self.unit)), None

    def pack_codes(self, base: Numbers, mask: Tensor | None) -> dict[str, Tensor]:
        """See `KernelStorage`."""
        assert isinstance(base, Quantized)  # `refusal` has refused tables
        codes, found = self._padded(raw_codes(base, mask)), {}
        if mask is not None and self.two_four:
            kept = two_of_four(self._padded(mask))
            found["tile_places"] = self._pack_places(kept)
            codes = codes[kept].view(len(codes), -1)
        found["tile_codes"] = self._pack_nibbles(codes)
        grid_shape = (self.format.shape[0], self.groups)
        found["tile_scale"] = self._by_lane(base.scale.expand(grid_shape))
        if base.zero_point is not None:
            found["tile_zero_point"] = self._by_lane(base.zero_point.expand(grid_shape))
        return found

    def unpack_codes(self, tensors: Mapping[str, Tensor]) -> Codes:
        """See `KernelStorage`."""
        codes, mask = self._unpack_nibbles(tensors["tile_codes"]), None
        if self.two_four:
            kept = self._unpack_places(tensors["tile_places"])
            full = torch.zeros(kept.shape, dtype=torch.uint8)
            full[kept] = codes.flatten()
            codes, mask = full, self._cut(kept)
        zeros = tensors.get("tile_zero_point")
        return Codes(
            self._cut(codes),
            mask,
            self._from_lanes(tensors["tile_scale"]),
            None if zeros is None else self._from_lanes(zeros),
        )

    def _pack_nibbles(self, codes: Tensor) -> Tensor:
        """[rows, stored inputs] -> tile_codes"""
        # row: tile, half, g   stored input: unit, step, upper, t, e
        split = codes.view(self.panels, 2, 2, 8, self.units, 4, 2, 4, 2)
        low, high = split.permute(0, 4, 1, 3, 7, 5, 8, 6, 2).unbind(-1)
        return (low | high << 4).reshape(self.own_shapes()["tile_codes"][0])

    def _unpack_nibbles(self, stored: Tensor) -> Tensor:
        """Inverse of `_pack_nibbles`."""
        split = torch.stack([stored & 15, stored >> 4], dim=-1)
        split = split.view(self.panels, self.units, 2, 8, 4, 4, 2, 2, 2)
        return split.permute(0, 2, 8, 3, 1, 5, 7, 4, 6).reshape(self.panels * PANEL, -1)

    def _pack_places(self, kept: Tensor) -> Tensor:
        """bool [rows, inputs], two of every four -> tile_places"""
        words = kept.view(len(kept), -1, 4)
        places = torch.arange(4, dtype=torch.uint8).expand(words.shape)[words]
        first, second = places.view(len(kept), -1, 2).unbind(-1)
        # row: tile, half, g   word of four: unit, product's pair, selector, thread, two, one
        split = (first | second << 2).view(self.panels, 2, 2, 8, self.units, 2, 2, 2, 2, 2)
        low, high = split.permute(0, 4, 3, 6, 7, 1, 5, 2, 8, 9).unbind(-1)
        return (low | high << 4).reshape(self.own_shapes()["tile_places"][0])

    def _unpack_places(self, stored: Tensor) -> Tensor:
        """Inverse of `_pack_places`."""
        split = torch.stack([stored & 15, stored >> 4], dim=-1)
        split = split.view(self.panels, self.units, 8, 2, 2, 2, 2, 2, 2, 2)
        words = split.permute(0, 5, 7, 2, 1, 6, 3, 4, 8, 9).reshape(self.panels * PANEL, -1)
        kept = torch.zeros(*words.shape, 4, dtype=torch.bool)
        for place in (words & 3, words >> 2):
            kept.scatter_(2, place.long()[..., None], True)
        return kept.flatten(1)

    def _by_lane(self, values: Tensor) -> Tensor:
        """[out, groups] -> [panels, groups, 8, 4], outputs padded with zeros."""
        full = torch.zeros(self.panels * PANEL, self.groups, dtype=values.dtype)
        full[: len(values)] = values
        return full.view(self.panels, 4, 8, self.groups).permute(0, 3, 2, 1)

    def _from_lanes(self, stored: Tensor) -> Tensor:
        """Inverse of `_by_lane`."""
        rows = stored.permute(0, 3, 2, 1).reshape(self.panels * PANEL, self.groups)
        return rows[: self.format.shape[0]].contiguous()
