"""Values of a table: every code names one of 2^bits levels, times a scale of one or two levels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats.bits import pack_bits, unpack_bits
from trinity.methods.formats.kept import kept_of
from trinity.methods.formats.level_tables import bits_of, levels, nearest_codes, zero_code
from trinity.methods.formats.scales import (
    EIGHT_BITS,
    SCALE_DTYPES,
    check_positive,
    check_scale,
    granularity,
)


@dataclass(frozen=True)
class Codebook:
    """What values of a table are, without their numbers.

    table: its name in `level_tables`
    scale_shape: (1, 1) per tensor, (out, 1) per channel, (out, groups) per group.
    scale_dtype: torch's name of the type that stores them
    outer_scale: whether one float32 more multiplies all of them
    """

    kind: ClassVar[str] = "codebook"
    table: str
    scale_shape: tuple[int, int]
    scale_dtype: str
    outer_scale: bool = False

    @property
    def numbers(self) -> "type[Coded]":
        """Codes of a table."""
        return Coded

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return bits_of(self.table)

    def words(self, d_in: int) -> list[str]:
        """The table, what shares a scale, and how scales are stored if not as usual."""
        words = [self.table, granularity(self.scale_shape, d_in)]
        short = EIGHT_BITS.get(getattr(torch, self.scale_dtype))
        words += [f"{short} scales"] if short else []
        return words + (["over float32"] if self.outer_scale else [])

    def to_json(self) -> dict[str, Any]:
        """The fields; `outer_scale` only where there is one."""
        data: dict[str, Any] = {
            "table": self.table,
            "scale_shape": list(self.scale_shape),
            "scale_dtype": self.scale_dtype,
        }
        return data | ({"outer_scale": True} if self.outer_scale else {})

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Codebook":
        """Read what `to_json` wrote; ConfigError, KeyError or TypeError if it is not that."""
        rows, groups = data["scale_shape"]
        dtype = data["scale_dtype"]
        if dtype not in {str(known).removeprefix("torch.") for known in SCALE_DTYPES}:
            raise ConfigError(f"scale_dtype: {dtype!r} is no type of scales.")
        bits_of(data["table"])  # refuses a table that is not known
        return Codebook(data["table"], (rows, groups), dtype, data.get("outer_scale", False))

    def restored(self, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> "Coded":
        """The weight `stored` gave."""
        return self._with_scales(
            unpack_bits(tensors["weight_packed"], self.bits, shape[1]), tensors
        )

    def restored_kept(
        self, mask: Tensor, kept: tuple[int, ...], tensors: Mapping[str, Tensor]
    ) -> "Coded":
        """The weight `stored_kept` gave; elsewhere the code of zero.  mask: bool [out, in]"""
        packed = tensors["weight_packed"]
        codes = torch.full(
            mask.shape, zero_code(self.table), dtype=torch.uint8, device=packed.device
        )
        codes[mask] = unpack_bits(packed, self.bits, kept[-1]).flatten()
        return self._with_scales(codes, tensors)

    def _with_scales(self, codes: Tensor, tensors: Mapping[str, Tensor]) -> "Coded":
        scale, dtype = tensors["weight_scale"], getattr(torch, self.scale_dtype)
        if dtype in EIGHT_BITS and scale.dtype == torch.uint8:
            scale = scale.view(dtype)
        outer = tensors["weight_outer_scale"] if self.outer_scale else None
        return Coded(codes, scale, self.table, outer)


@dataclass(frozen=True, eq=False)
class Coded:
    """`level(code) * scale * outer_scale`, one scale a tensor, output or group of inputs.

    codes: uint8 [out, in], below 2^bits, each of a level of the table
    scale: [1, 1], [out, 1] or [out, groups], positive: float32, float16, bfloat16, float8_e4m3fn
        or float8_e8m0fnu (powers of two)
    table: name of the levels in `level_tables`
    outer_scale: float32 [1, 1], positive: what multiplies all scales; None is 1
    """

    codes: Tensor
    scale: Tensor
    table: str
    outer_scale: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse codes without a level, scales that are not positive, shapes that do not fit."""
        codes = self.codes
        if codes.ndim != 2 or 0 in codes.shape or codes.dtype != torch.uint8:
            msg = f"codes: expected uint8 [out, in], found {codes.dtype} {list(codes.shape)}."
            raise ConfigError(msg)
        known = torch.zeros(256, dtype=torch.bool, device=codes.device)
        known[: 2 ** bits_of(self.table)] = levels(self.table).isfinite().to(codes.device)
        check_scale(self.scale, self.shape, SCALE_DTYPES)
        if not bool(known[codes.int()].all()):
            wrong = int(codes[~known[codes.int()]][0])
            raise ConfigError(f"codes: {wrong} is no code of the table '{self.table}'.")
        outer = self.outer_scale
        if outer is not None:
            if outer.dtype != torch.float32 or outer.shape != (1, 1):
                msg = (
                    f"outer_scale: expected float32 [1, 1], found {outer.dtype} "
                    f"{list(outer.shape)}."
                )
                raise ConfigError(msg)
            check_positive(outer, "outer_scale")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.codes.shape[0], self.codes.shape[1])

    @property
    def values_format(self) -> Codebook:
        """The codebook without its numbers."""
        rows, groups = self.scale.shape
        name = str(self.scale.dtype).removeprefix("torch.")
        return Codebook(self.table, (rows, groups), name, self.outer_scale is not None)

    def scales(self) -> Tensor:
        """What levels are multiplied by.  -> float32 [1 | out, groups]"""
        scale = self.scale.float()
        return scale if self.outer_scale is None else scale * self.outer_scale

    def rounded(self, W: Tensor) -> "Coded":
        """The nearest levels under the same scales.  W: [out, in]"""
        return replace(self, codes=coded(W, self.scales(), self.table))

    def cleared(self, mask: Tensor) -> "Coded":
        """The code of zero where the mask is False.  mask: bool [out, in]"""
        return replace(self, codes=self.codes.masked_fill(~mask, zero_code(self.table)))

    def stored(self) -> dict[str, Tensor]:
        """The codes of a row in `bits` bits each, and the scales."""
        return self._stored(self.codes)

    def stored_kept(self, mask: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The kept codes as `shape`, in `bits` bits each, and the scales."""
        return self._stored(kept_of(self.codes, mask).view(shape))

    def _stored(self, codes: Tensor) -> dict[str, Tensor]:
        scale = self.scale.contiguous()
        tensors = {
            "weight_packed": pack_bits(codes, bits_of(self.table)),
            "weight_scale": scale.view(torch.uint8) if scale.dtype in EIGHT_BITS else scale,
        }
        if self.outer_scale is not None:
            tensors["weight_outer_scale"] = self.outer_scale
        return tensors

    def dequantize(self) -> Tensor:
        """The weight it stands for.  -> [out, in], float32."""
        (out, d_in), scale = self.shape, self.scales()
        found = levels(self.table).to(self.codes.device)[self.codes.int()]
        return found.view(out, scale.shape[1], -1).mul_(scale[:, :, None]).view(out, d_in)


def coded(W: Tensor, scales: Tensor, table: str) -> Tensor:
    """Codes of the nearest levels, half to even.

    W: [out, in]  scales: float32 [1 | out, groups]  ->  uint8 [out, in]
    """
    out, d_in = W.shape
    groups = W.float().reshape(out, scales.shape[1], -1) / scales[:, :, None]
    return nearest_codes(groups, table).view(out, d_in)
