"""Outliers: a few entries of each row, stored by index, as a term beside a weight: `W ~ Q + S`.

S is added, it does not replace: what an outlier stores is the difference to what stands in its
place in Q.  So a kernel adds one more product, and Q need not have a value for "nothing here".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats.dense import FLOAT_DTYPES
from trinity.methods.formats.sparse import Sparse
from trinity.methods.formats.values import Values

SHORT = 2**15  # columns that a signed integer of 16 bits can name


@dataclass(frozen=True)
class OutlierFormat:
    """What outliers are without their numbers.

    room: the most that a row has: what a module stores of every row   dtype: of their values
    """

    room: int
    dtype: str

    @property
    def label(self) -> str:
        """A reader's words."""
        return f"+ {self.room} outliers"

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return {"room": self.room, "dtype": self.dtype}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "OutlierFormat":
        """Read what `to_json` wrote; ConfigError, KeyError or TypeError if it is not that."""
        room, dtype = data["room"], data["dtype"]
        if not isinstance(room, int) or isinstance(room, bool) or room < 1:
            raise ConfigError(f"outliers: room {room!r} is not a number of entries.")
        if dtype not in {str(known).removeprefix("torch.") for known in FLOAT_DTYPES}:
            raise ConfigError(f"outliers: {dtype!r} is no type of their values.")
        return OutlierFormat(room, dtype)


def index_dtype(d_in: int) -> torch.dtype:
    """The type that names one of so many columns."""
    return torch.int16 if d_in <= SHORT else torch.int32


@dataclass(frozen=True, eq=False)
class WithOutliers:
    """A weight and a few entries that are added to it.

    columns: int16 [out, room] (int32 where in is above 32768), which input an entry is of
    values: float [out, room], finite; 0 where a row has fewer.  Made so that entries of a row
        ascend, and those that are 0 stand last, with column 0
    """

    base: Values | Sparse
    columns: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        """Refuse entries that do not fit the weight, or two of one place; put them in order."""
        columns, values, (out, d_in) = self.columns, self.values, self.base.shape
        fits = columns.ndim == 2 and columns.shape == values.shape and columns.shape[0] == out
        if not fits or columns.shape[1] == 0 or values.dtype not in FLOAT_DTYPES:
            msg = (
                f"outliers: columns {columns.dtype} {list(columns.shape)} and values "
                f"{values.dtype} {list(values.shape)} do not fit a weight [{out}, {d_in}]: "
                f"expected an integer and a float for each of some entries of every row."
            )
            raise ConfigError(msg)
        if not bool(values.isfinite().all()):
            msg = f"outliers: a value is not finite in {values.dtype}. Store them in a wider type."
            raise ConfigError(msg)
        columns, there = columns.long(), values != 0
        outside = there & ((columns < 0) | (columns >= d_in))
        if bool(outside.any()):
            found = int(columns[outside][0])
            raise ConfigError(f"outliers: column {found} is not one of {d_in} inputs.")
        key, order = columns.masked_fill(~there, d_in).sort(dim=1, stable=True)
        if bool(((key[:, 1:] == key[:, :-1]) & (key[:, 1:] < d_in)).any()):
            raise ConfigError("outliers: a row has two of one column.")
        object.__setattr__(self, "columns", (key % d_in).to(index_dtype(d_in)))
        object.__setattr__(self, "values", values.gather(1, order))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.base.shape

    @property
    def outlier_format(self) -> OutlierFormat:
        """The outliers without their numbers."""
        name = str(self.values.dtype).removeprefix("torch.")
        return OutlierFormat(self.values.shape[1], name)

    def term(self) -> Tensor:
        """What is added.  -> [out, in], float32"""
        found = torch.zeros(self.shape, device=self.values.device)
        # Entries of 0 share column 0 with one that may be there: added, not written.
        return found.scatter_add_(1, self.columns.long(), self.values.float())

    def dequantize(self) -> Tensor:
        """The weight it stands for.  -> [out, in], float32."""
        return self.base.dequantize() + self.term()


def with_outliers(base: Values | Sparse, S: Tensor, room: int, dtype: torch.dtype) -> WithOutliers:
    """A weight with the entries of S that are not 0; ConfigError if a row has more than `room`.

    S: [out, in], of any float type, rounded to `dtype`
    """
    S = S.to(dtype)
    most = int((S != 0).sum(1).max())
    if most > room:
        raise ConfigError(f"outliers: a row has {most}, and there is room for {room}.")
    columns = (S != 0).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :room]
    return WithOutliers(base, columns, S.gather(1, columns))


def stored(weight: WithOutliers) -> dict[str, Tensor]:
    """The tensors that store the outliers: those that are there, row after row."""
    there = weight.values != 0
    return {
        "outlier_counts": there.sum(1).to(weight.columns.dtype),
        "outlier_columns": weight.columns[there],
        "outlier_values": weight.values[there],
    }


def restored(
    base: Values | Sparse, layout: OutlierFormat, tensors: Mapping[str, Tensor]
) -> WithOutliers:
    """The weight whose outliers `stored` gave."""
    counts, kept = tensors["outlier_counts"].long(), tensors["outlier_values"]
    if len(counts) != base.shape[0] or bool((counts < 0).any() | (counts > layout.room).any()):
        msg = f"outliers: counts of {len(counts)} rows do not fit {base.shape[0]} of {layout.room}."
        raise ConfigError(msg)
    there = torch.arange(layout.room, device=kept.device) < counts[:, None]
    values = torch.zeros(there.shape, dtype=kept.dtype, device=kept.device)
    columns = torch.zeros(there.shape, dtype=torch.int64, device=kept.device)
    columns[there] = tensors["outlier_columns"].long()
    values[there] = kept
    return WithOutliers(base, columns, values)
