"""Codes on uniform grids whose scales and zero points are codes too: two levels (SpQR).

    w = s (q - z),   s = s_low + s_step * code,   z = z_low + z_step * code

s and z are of a row and a group of consecutive inputs; low and step of some rows and the same
inputs.  z is no integer, and 0 need not be a value of the grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats.bits import pack_bits, unpack_bits
from trinity.methods.formats.dense import FLOAT_DTYPES
from trinity.methods.formats.kept import kept_of

BITS = (2, 3, 4)
OF = ("scale", "zero")
SECOND = ("scale_low", "scale_step", "zero_low", "zero_step")


@dataclass(frozen=True)
class NestedGrid:
    """Such codes without their numbers.

    bits: of a code   groups: of a row   second_bits: of the code of a scale or zero point
    rows: that share the second level   dtype: of the second level
    """

    kind: ClassVar[str] = "nested_grid"
    bits: int
    groups: int
    second_bits: int
    rows: int
    dtype: str

    @property
    def numbers(self) -> "type[Nested]":
        """Codes under two levels of scales."""
        return Nested

    def words(self, d_in: int) -> list[str]:
        """Bits, group, and bits of the second level."""
        return [f"int{self.bits} group {d_in // self.groups} int{self.second_bits} scales"]

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return {
            "bits": self.bits,
            "groups": self.groups,
            "second_bits": self.second_bits,
            "rows": self.rows,
            "dtype": self.dtype,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "NestedGrid":
        """Read what `to_json` wrote; ConfigError, KeyError or TypeError if it is not that."""
        made = NestedGrid(**data)
        if made.bits not in BITS or made.second_bits not in BITS:
            raise ConfigError(f"bits: {made.bits}, {made.second_bits} are not of {BITS}.")
        if made.dtype not in {str(known).removeprefix("torch.") for known in FLOAT_DTYPES}:
            raise ConfigError(f"dtype: {made.dtype!r} is no type of scales.")
        return made

    def restored(self, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> "Nested":
        """The weight `stored` gave."""
        return self._restored(unpack_bits(tensors["weight_packed"], self.bits, shape[1]), tensors)

    def restored_kept(
        self, mask: Tensor, kept: tuple[int, ...], tensors: Mapping[str, Tensor]
    ) -> "Nested":
        """The weight `stored_kept` gave; elsewhere code 0.  mask: bool [out, in]"""
        packed = tensors["weight_packed"]
        codes = torch.zeros(mask.shape, dtype=torch.uint8, device=packed.device)
        codes[mask] = unpack_bits(packed, self.bits, kept[-1]).flatten()
        return self._restored(codes, tensors)

    def _restored(self, codes: Tensor, tensors: Mapping[str, Tensor]) -> "Nested":
        scale, zero = (
            unpack_bits(tensors[f"weight_{name}_codes"], self.second_bits, self.groups)
            for name in OF
        )
        second = {name: tensors[f"weight_{name}"] for name in SECOND}
        return self.made(codes, {"scale_codes": scale, "zero_codes": zero, **second})

    def made(self, codes: Tensor, beside: Mapping[str, Tensor]) -> "Nested":
        """Such codes.  beside: the other tensors, by their names in `Nested`"""
        return Nested(
            codes,
            beside["scale_codes"],
            beside["zero_codes"],
            beside["scale_low"],
            beside["scale_step"],
            beside["zero_low"],
            beside["zero_step"],
            self.bits,
            self.second_bits,
            self.rows,
        )


@dataclass(frozen=True, eq=False)
class Nested:
    """`s (q - z)`, s and z of a row and group and both codes themselves.

    codes: uint8 [out, in], below 2^bits
    scale_codes, zero_codes: uint8 [out, groups], below 2^second_bits
    scale_low, scale_step, zero_low, zero_step: floats of one type, finite, [ceil(out / rows),
        groups]
    """

    codes: Tensor
    scale_codes: Tensor
    zero_codes: Tensor
    scale_low: Tensor
    scale_step: Tensor
    zero_low: Tensor
    zero_step: Tensor
    bits: int
    second_bits: int = 3
    rows: int = 16

    def __post_init__(self) -> None:
        """Refuse what does not fit, codes that there are none of, and what is not finite."""
        if self.bits not in BITS or self.second_bits not in BITS or self.rows < 1:
            msg = f"nested grid: {self.bits} and {self.second_bits} bits, {self.rows} rows."
            raise ConfigError(msg)
        codes, groups = self.codes, self.scale_codes.shape[-1]
        if codes.ndim != 2 or 0 in codes.shape or groups < 1 or codes.shape[1] % groups:
            msg = f"codes: expected [out, in] of {groups} groups, found {list(codes.shape)}."
            raise ConfigError(msg)
        for name, bits in (("codes", self.bits), *((f"{of}_codes", self.second_bits) for of in OF)):
            found, columns = getattr(self, name), codes.shape[1] if name == "codes" else groups
            shape = (codes.shape[0], columns)
            if found.dtype != torch.uint8 or tuple(found.shape) != shape:
                msg = f"{name}: {found.dtype} {list(found.shape)} is not uint8 {list(shape)}."
                raise ConfigError(msg)
            if int(found.max()) >= 2**bits:
                raise ConfigError(f"{name}: {int(found.max())} is no code of {bits} bits.")
        second = (-(-codes.shape[0] // self.rows), groups)
        for name in SECOND:
            found = getattr(self, name)
            if found.dtype != self.scale_low.dtype or found.dtype not in FLOAT_DTYPES:
                raise ConfigError(f"{name}: {found.dtype} is not the float type of the others.")
            if tuple(found.shape) != second:
                raise ConfigError(f"{name}: {list(found.shape)} is not {list(second)}.")
            if not bool(found.isfinite().all()):
                raise ConfigError(f"{name}: holds entries that are not finite in {found.dtype}.")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.codes.shape[0], self.codes.shape[1])

    @property
    def values_format(self) -> NestedGrid:
        """The grids without their numbers."""
        dtype = str(self.scale_low.dtype).removeprefix("torch.")
        groups = self.scale_codes.shape[1]
        return NestedGrid(self.bits, groups, self.second_bits, self.rows, dtype)

    def scales(self) -> tuple[Tensor, Tensor]:
        """s and z.  -> [out, groups] each, float32"""
        return (
            decoded(self.scale_codes, self.scale_low, self.scale_step, self.rows),
            decoded(self.zero_codes, self.zero_low, self.zero_step, self.rows),
        )

    def dequantize(self) -> Tensor:
        """The weight it stands for.  -> [out, in], float32."""
        scale, zero = (self._by_input(of) for of in self.scales())
        return scale * (self.codes.float() - zero)

    def rounded(self, W: Tensor) -> "Nested":
        """The nearest codes under the same scales.  W: [out, in]"""
        scale, zero = (self._by_input(of) for of in self.scales())
        return replace(self, codes=nearest(W.float(), scale, zero, self.bits).to(torch.uint8))

    def cleared(self, mask: Tensor) -> "Nested":
        """Code 0 where the mask is False.  mask: bool [out, in]"""
        return replace(self, codes=self.codes.masked_fill(~mask, 0))

    def stored(self) -> dict[str, Tensor]:
        """Codes of a row in `bits` bits each, those of scales and zero points, and their grids."""
        return self._stored(self.codes)

    def stored_kept(self, mask: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The same of the kept codes, as `shape`."""
        return self._stored(kept_of(self.codes, mask).view(shape))

    def _stored(self, codes: Tensor) -> dict[str, Tensor]:
        first = {f"weight_{of}_codes": getattr(self, f"{of}_codes") for of in OF}
        packed = {name: pack_bits(found, self.second_bits) for name, found in first.items()}
        second = {f"weight_{name}": getattr(self, name).contiguous() for name in SECOND}
        return {"weight_packed": pack_bits(codes, self.bits), **packed, **second}

    def _by_input(self, of: Tensor) -> Tensor:
        """[out, groups] -> [out, in]"""
        return of.repeat_interleave(self.shape[1] // of.shape[1], dim=1)


def decoded(codes: Tensor, low: Tensor, step: Tensor, rows: int) -> Tensor:
    """`low + step * code`.  codes: [out, groups]   low, step: of every `rows` rows -> float32"""
    out = codes.shape[0]
    lows, steps = (of.float().repeat_interleave(rows, dim=0)[:out] for of in (low, step))
    return lows + steps * codes.float()


def nearest(W: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest codes, half to even, as floats; 0 under a scale of 0."""
    ratio = torch.where(scale == 0, -zero, W / torch.where(scale == 0, 1.0, scale))
    return (ratio + zero).round_().clamp_(0, 2**bits - 1)
