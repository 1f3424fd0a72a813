"""Uniformly quantized weights: integer codes, a scale and, if asymmetric, a zero point."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats.bits import pack_bits, unpack_bits
from trinity.methods.formats.dense import FLOAT_DTYPES
from trinity.methods.formats.kept import kept_of
from trinity.methods.formats.scales import check_positive, check_scale, granularity

BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Grid:
    """What a uniform quantization is, without its numbers.

    scale_shape: (1, 1) per tensor, (out, 1) per channel, (out, groups) per group.
    indexed: an index says which group an input belongs to; else groups are consecutive inputs
    input_scale: type of one more scale for every input, None without
    """

    kind: ClassVar[str] = "grid"
    bits: int
    symmetric: bool
    scale_shape: tuple[int, int]
    scale_dtype: str
    indexed: bool = False
    input_scale: str | None = None

    @property
    def numbers(self) -> "type[Quantized]":
        """Codes."""
        return Quantized

    def granularity(self, d_in: int) -> str:
        """'tensor', 'channel' or 'group N': what shares one scale."""
        return granularity(self.scale_shape, d_in)

    def words(self, d_in: int) -> list[str]:
        """Width, what shares a scale, and what is not as usual."""
        words = [f"int{self.bits}", self.granularity(d_in)]
        words += ["by index"] if self.indexed else []
        words += [] if self.symmetric else ["asymmetric"]
        return words + (["scaled inputs"] if self.input_scale else [])

    def to_json(self) -> dict[str, Any]:
        """What is not as usual is named only where it is so."""
        data: dict[str, Any] = {
            "bits": self.bits,
            "symmetric": self.symmetric,
            "scale_shape": list(self.scale_shape),
            "scale_dtype": self.scale_dtype,
        }
        if self.indexed:
            data["indexed"] = True
        if self.input_scale:
            data["input_scale"] = self.input_scale
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Grid":
        """Read what `to_json` wrote; KeyError or TypeError if it is not that."""
        rows, groups = data["scale_shape"]
        indexed, inputs = data.get("indexed", False), data.get("input_scale")
        shape = (rows, groups)
        return Grid(data["bits"], data["symmetric"], shape, data["scale_dtype"], indexed, inputs)

    def restored(self, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> "Quantized":
        """The weight `stored` gave."""
        return self._with_scales(
            unpack_bits(tensors["weight_packed"], self.bits, shape[1]), tensors
        )

    def restored_kept(
        self, mask: Tensor, kept: tuple[int, ...], tensors: Mapping[str, Tensor]
    ) -> "Quantized":
        """The weight `stored_kept` gave; elsewhere a code of the grid without a meaning."""
        packed = tensors["weight_packed"]
        codes = torch.zeros(mask.shape, dtype=torch.uint8, device=packed.device)
        codes[mask] = unpack_bits(packed, self.bits, kept[-1]).flatten()
        return self._with_scales(codes, tensors)

    def _with_scales(self, unsigned: Tensor, tensors: Mapping[str, Tensor]) -> "Quantized":
        codes, zero_point = unsigned, None
        if self.symmetric:
            codes = (unsigned.to(torch.int16) - (1 << (self.bits - 1))).to(torch.int8)
        else:
            stored = tensors["weight_zero_point"]
            zero_point = unpack_bits(stored, self.bits, self.scale_shape[1])
        index = tensors["weight_g_idx"] if self.indexed else None
        inputs = tensors["weight_input_scale"] if self.input_scale else None
        return Quantized(codes, tensors["weight_scale"], zero_point, self.bits, index, inputs)


@dataclass(frozen=True, eq=False)
class Quantized:
    """`scale * (code - zero_point) * input_scale`, one scale a tensor, output or group of inputs.

    codes: [out, in], int8 in -2^(bits-1) .. 2^(bits-1) - 1 if symmetric, else uint8 in
        0 .. 2^bits - 1
    scale: [1, 1], [out, 1] or [out, groups], float32, float16 or bfloat16, positive
    zero_point: None if symmetric, else uint8 of the shape of `scale`
    group_index: int32 [in], the group of every input (GPTQ's `g_idx`); None where groups are
        in // groups consecutive inputs
    input_scale: [in], float32, float16 or bfloat16, positive: what every input is multiplied by
        before the product (its weights were divided by it before they were rounded); None is 1
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bits: int
    group_index: Tensor | None = None
    input_scale: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse codes off the grid, scales that are not positive, and shapes that do not fit."""
        self._check_codes()
        indexed = self.group_index is not None
        check_scale(self.scale, self.shape, FLOAT_DTYPES, indexed=indexed)
        self._check_index()
        self._check_input_scale()
        self._check_range()
        zero_point = self.zero_point
        if zero_point is not None:
            if zero_point.dtype != torch.uint8 or zero_point.shape != self.scale.shape:
                msg = (
                    f"zero_point: expected uint8 {list(self.scale.shape)}, "
                    f"found {zero_point.dtype} {list(zero_point.shape)}."
                )
                raise ConfigError(msg)
            if int(zero_point.max()) >= 2**self.bits:
                msg = f"zero_point: {int(zero_point.max())} does not fit {self.bits} bits."
                raise ConfigError(msg)

    def _check_codes(self) -> None:
        if self.bits not in BITS:
            msg = f"bits: {self.bits} is not one of {', '.join(map(str, BITS))}."
            raise ConfigError(msg)
        codes, symmetric = self.codes, self.zero_point is None
        expected = torch.int8 if symmetric else torch.uint8
        if codes.ndim != 2 or 0 in codes.shape or codes.dtype != expected:
            msg = f"codes: expected {expected} [out, in], found {codes.dtype} {list(codes.shape)}."
            raise ConfigError(msg)

    def _check_range(self) -> None:
        # After the scale: a scale of zero makes codes of NaN, and is the thing to report.
        codes = self.codes
        low, high = code_range(self.bits, self.zero_point is None)
        smallest, largest = (int(v) for v in torch.aminmax(codes))
        if smallest < low or largest > high:
            msg = f"codes: {smallest}..{largest} is outside {low}..{high} of {self.bits} bits."
            raise ConfigError(msg)

    def _check_index(self) -> None:
        index, d_in, groups = self.group_index, self.shape[1], self.scale.shape[1]
        if index is None:
            return
        if index.dtype != torch.int32 or index.shape != (d_in,):
            msg = f"group_index: expected int32 [{d_in}], found {index.dtype} {list(index.shape)}."
            raise ConfigError(msg)
        smallest, largest = (int(v) for v in torch.aminmax(index))
        if smallest < 0 or largest >= groups:
            msg = f"group_index: {smallest}..{largest} is outside the {groups} groups of the scale."
            raise ConfigError(msg)

    def _check_input_scale(self) -> None:
        scale, d_in = self.input_scale, self.shape[1]
        if scale is None:
            return
        if scale.dtype not in FLOAT_DTYPES or scale.shape != (d_in,):
            msg = f"input_scale: expected floats [{d_in}], found {scale.dtype} {list(scale.shape)}."
            raise ConfigError(msg)
        check_positive(scale, "input_scale")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.codes.shape[0], self.codes.shape[1])

    @property
    def group_size(self) -> int:
        """Inputs that share one scale, at most; `in` if per tensor or per channel."""
        return -(-self.shape[1] // self.scale.shape[1])

    @property
    def grid(self) -> Grid:
        """The quantization without its numbers."""
        rows, groups = self.scale.shape
        name = str(self.scale.dtype).removeprefix("torch.")
        inputs = None
        if self.input_scale is not None:
            inputs = str(self.input_scale.dtype).removeprefix("torch.")
        indexed = self.group_index is not None
        return Grid(self.bits, self.zero_point is None, (rows, groups), name, indexed, inputs)

    @property
    def values_format(self) -> Grid:
        """The quantization without its numbers."""
        return self.grid

    def rounded(self, W: Tensor) -> "Quantized":
        """W on the grid that these codes have, input scales and index included.  W: [out, in]"""
        if self.input_scale is not None:
            W = W / self.input_scale.float()
        scale, zero_point = self.scale, self.zero_point
        if self.group_index is not None:  # every input its own group, then
            scale = self.by_input(scale)
            zero_point = None if zero_point is None else self.by_input(zero_point)
        codes = nearest_codes(W.contiguous(), scale, zero_point, self.bits)
        return replace(self, codes=codes)

    def cleared(self, mask: Tensor) -> "Quantized":
        """Code 0 where the mask is False.  mask: bool [out, in]"""
        return replace(self, codes=self.codes.masked_fill(~mask, 0))

    def stored(self) -> dict[str, Tensor]:
        """The codes of a row in `bits` bits each, and what decodes them."""
        return self._stored(self.codes)

    def stored_kept(self, mask: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The kept codes as `shape`, in `bits` bits each, and what decodes them."""
        return self._stored(kept_of(self.codes, mask).view(shape))

    def _stored(self, codes: Tensor) -> dict[str, Tensor]:
        if self.zero_point is None:  # signed codes in offset binary
            codes = (codes.to(torch.int16) + (1 << (self.bits - 1))).to(torch.uint8)
        tensors = {"weight_packed": pack_bits(codes, self.bits)}
        tensors["weight_scale"] = self.scale.contiguous()
        if self.zero_point is not None:
            tensors["weight_zero_point"] = pack_bits(self.zero_point, self.bits)
        if self.group_index is not None:
            tensors["weight_g_idx"] = self.group_index.contiguous()
        if self.input_scale is not None:
            tensors["weight_input_scale"] = self.input_scale.contiguous()
        return tensors

    def by_input(self, values: Tensor) -> Tensor:
        """Each input's own column of a scale or zero point.  [1 | out, groups] -> [1 | out, in]"""
        if self.group_index is not None:
            return values.index_select(1, self.group_index)
        return values.repeat_interleave(self.group_size, dim=1)

    def dequantize(self) -> Tensor:
        """The weight it stands for.  -> [out, in], float32."""
        out, d_in = self.shape
        if self.group_index is not None:
            values = self.codes.float()
            if self.zero_point is not None:
                values -= self.by_input(self.zero_point.float())
            values *= self.by_input(self.scale.float())
        else:
            codes = self.codes.float().view(out, self.scale.shape[1], self.group_size)
            if self.zero_point is not None:
                codes = codes - self.zero_point.float()[:, :, None]
            values = (codes * self.scale.float()[:, :, None]).reshape(out, d_in)
        return values if self.input_scale is None else values * self.input_scale.float()


def nearest_codes(W: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int) -> Tensor:
    """Round to the nearest code, half to even, of a given grid.

    W: [out, in]  scale, zero_point: [1 | out, groups]  ->  int8 [out, in], uint8 with a zero point
    """
    out, d_in = W.shape
    low, high = code_range(bits, zero_point is None)
    groups = W.float().view(out, scale.shape[1], d_in // scale.shape[1])
    codes = torch.round(groups / scale.float()[:, :, None])
    if zero_point is not None:
        codes = codes + zero_point.float()[:, :, None]
    dtype = torch.int8 if zero_point is None else torch.uint8
    return codes.clamp(low, high).to(dtype).view(out, d_in)


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest code of a grid."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
