"""A weight stored as floats, one for every entry."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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

    def dequantize(self) -> Tensor:
        """The weight it stands for, in memory of its own.  -> [out, in], float32."""
        return self.values.to(torch.float32, copy=True)


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
