"""A weight stored as floats, one for every entry."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats.kept import kept_of

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Floats:
    """What plain floats are, without their numbers.  dtype: torch's name of their type"""

    kind: ClassVar[str] = "dtype"
    dtype: str

    @property
    def numbers(self) -> "type[Dense]":
        """Floats."""
        return Dense

    def words(self, d_in: int) -> list[str]:
        """The type, whatever `d_in` is."""
        return [self.dtype]

    def to_json(self) -> str:
        """The type."""
        return self.dtype

    @staticmethod
    def from_json(data: str) -> "Floats":
        """Read what `to_json` wrote; ConfigError if it is no type that is stored."""
        if data not in {_name(dtype) for dtype in FLOAT_DTYPES}:
            raise ConfigError(f"dtype: {data!r} is not float32, float16 or bfloat16.")
        return Floats(data)

    def restored(self, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> "Dense":
        """The weight `stored` gave; the caller compares its shape with [out, in]."""
        return Dense(tensors["weight"])

    def restored_kept(
        self, mask: Tensor, kept: tuple[int, ...], tensors: Mapping[str, Tensor]
    ) -> "Dense":
        """The weight `stored_kept` gave, zero elsewhere.  mask: bool [out, in]"""
        packed = tensors["weight_packed"]
        values = torch.zeros(mask.shape, dtype=packed.dtype, device=packed.device)
        values[mask] = packed.flatten()
        return Dense(values)


@dataclass(frozen=True, eq=False)
class Dense:
    """An uncompressed weight.  values: [out, in], float32, float16 or bfloat16, finite."""

    values: Tensor

    def __post_init__(self) -> None:
        """Refuse what is not a finite float matrix."""
        check_float_matrix(self.values, "values")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.values.shape[0], self.values.shape[1])

    @property
    def values_format(self) -> Floats:
        """The floats without their numbers."""
        return Floats(_name(self.values.dtype))

    def rounded(self, W: Tensor) -> "Dense":
        """W in the type of these values.  W: [out, in]"""
        return Dense(W.to(self.values.dtype))

    def cleared(self, mask: Tensor) -> "Dense":
        """Zero where the mask is False.  mask: bool [out, in]"""
        return Dense(self.values.masked_fill(~mask, 0))

    def stored(self) -> dict[str, Tensor]:
        """The values themselves where they are contiguous."""
        return {"weight": self.values.contiguous()}

    def stored_kept(self, mask: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The kept values, row after row, as `shape`."""
        return {"weight_packed": kept_of(self.values, mask).view(shape)}

    def dequantize(self) -> Tensor:
        """The weight it stands for, in memory of its own.  -> [out, in], float32."""
        return self.values.to(torch.float32, copy=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_float_matrix(values: Tensor, name: str) -> None:
    """Raise ConfigError unless `values` is a finite matrix of a storable float type."""
    if values.ndim != 2 or 0 in values.shape:
        msg = f"{name}: expected a matrix [out, in] with entries, found shape {list(values.shape)}."
        raise ConfigError(msg)
    if values.dtype not in FLOAT_DTYPES:
        msg = f"{name}: expected float32, float16 or bfloat16, found {values.dtype}."
        raise ConfigError(msg)
    # The extremes are NaN or infinite if any entry is, and need no copy of the matrix.
    if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(values)):
        msg = (
            f"{name}: holds NaN or infinity in {values.dtype}. The number does not fit the type it "
            f"is stored in, or the model is damaged: use a wider type or check the checkpoint."
        )
        raise ConfigError(msg)
