"""Values of a table that each row has for itself, as clustering makes them (SqueezeLLM, Kim et al.,
arXiv:2306.07629): every code names one of the row's 2^bits levels.  No scale.
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


@dataclass(frozen=True)
class RowCodebook:
    """What such values are without their numbers.

    bits: of a code   tables: one for all rows, or one for each
    dtype: torch's name of the levels' type
    """

    kind: ClassVar[str] = "row_codebook"
    bits: int
    tables: int
    dtype: str

    @property
    def numbers(self) -> "type[RowCoded]":
        """Codes of a row's own table."""
        return RowCoded

    def words(self, d_in: int) -> list[str]:
        """How many levels, and whose."""
        return [f"{2**self.bits} levels", "tensor" if self.tables == 1 else "channel"]

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return {"bits": self.bits, "tables": self.tables, "dtype": self.dtype}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "RowCodebook":
        """Read what `to_json` wrote; ConfigError, KeyError or TypeError if it is not that."""
        bits, tables, dtype = data["bits"], data["tables"], data["dtype"]
        if bits not in BITS:
            raise ConfigError(f"bits: {bits!r} is not {', '.join(map(str, BITS))}.")
        if dtype not in {str(known).removeprefix("torch.") for known in FLOAT_DTYPES}:
            raise ConfigError(f"dtype: {dtype!r} is no type of levels.")
        return RowCodebook(bits, tables, dtype)

    def restored(self, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> "RowCoded":
        """The weight `stored` gave."""
        codes = unpack_bits(tensors["weight_packed"], self.bits, shape[1])
        return RowCoded(codes, tensors["weight_levels"])

    def restored_kept(
        self, mask: Tensor, kept: tuple[int, ...], tensors: Mapping[str, Tensor]
    ) -> "RowCoded":
        """The weight `stored_kept` gave; elsewhere code 0.  mask: bool [out, in]"""
        packed = tensors["weight_packed"]
        codes = torch.zeros(mask.shape, dtype=torch.uint8, device=packed.device)
        codes[mask] = unpack_bits(packed, self.bits, kept[-1]).flatten()
        return RowCoded(codes, tensors["weight_levels"])


@dataclass(frozen=True, eq=False)
class RowCoded:
    """`levels[row, code]`.

    codes: uint8 [out, in], below 2^bits
    levels: float32, float16 or bfloat16, [out, 2^bits], or [1, 2^bits] for one table, finite
    """

    codes: Tensor
    levels: Tensor

    def __post_init__(self) -> None:
        """Refuse codes without a level, and levels that are not finite or do not fit."""
        codes, levels = self.codes, self.levels
        if codes.ndim != 2 or 0 in codes.shape or codes.dtype != torch.uint8:
            msg = f"codes: expected uint8 [out, in], found {codes.dtype} {list(codes.shape)}."
            raise ConfigError(msg)
        out, fits = codes.shape[0], levels.ndim == 2 and levels.dtype in FLOAT_DTYPES
        sizes = tuple(2**bits for bits in BITS)
        if not fits or levels.shape[0] not in (1, out) or levels.shape[1] not in sizes:
            msg = (
                f"levels: {levels.dtype} {list(levels.shape)} does not fit codes "
                f"{list(codes.shape)}: expected floats [{out}, n] or [1, n], n one of "
                f"{', '.join(map(str, sizes))}."
            )
            raise ConfigError(msg)
        if not bool(levels.isfinite().all()):
            raise ConfigError("levels: holds entries that are not finite numbers.")
        if int(codes.max()) >= levels.shape[1]:
            msg = f"codes: {int(codes.max())} is no code of {levels.shape[1]} levels."
            raise ConfigError(msg)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.codes.shape[0], self.codes.shape[1])

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.levels.shape[1].bit_length() - 1

    @property
    def values_format(self) -> RowCodebook:
        """The tables without their numbers."""
        name = str(self.levels.dtype).removeprefix("torch.")
        return RowCodebook(self.bits, self.levels.shape[0], name)

    def rounded(self, W: Tensor) -> "RowCoded":
        """The nearest of each row's levels, of two equally near the first.  W: [out, in]"""
        W, levels = W.float(), self.levels.float()
        nearest = (W - levels[:, :1]).abs()
        codes = torch.zeros(W.shape, dtype=torch.uint8, device=W.device)
        for code in range(1, levels.shape[1]):
            distance = (W - levels[:, code : code + 1]).abs()
            codes[distance < nearest] = code
            nearest = torch.minimum(nearest, distance)
        return replace(self, codes=codes)

    def cleared(self, mask: Tensor) -> "RowCoded":
        """Code 0 where the mask is False.  mask: bool [out, in]"""
        return replace(self, codes=self.codes.masked_fill(~mask, 0))

    def stored(self) -> dict[str, Tensor]:
        """The codes of a row in `bits` bits each, and the levels."""
        return self._stored(self.codes)

    def stored_kept(self, mask: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The kept codes as `shape`, in `bits` bits each, and the levels."""
        return self._stored(kept_of(self.codes, mask).view(shape))

    def _stored(self, codes: Tensor) -> dict[str, Tensor]:
        levels = self.levels.contiguous()
        return {"weight_packed": pack_bits(codes, self.bits), "weight_levels": levels}

    def dequantize(self) -> Tensor:
        """The weight it stands for.  -> [out, in], float32."""
        tables = self.levels.float().expand(self.shape[0], -1)
        return tables.gather(1, self.codes.long())
