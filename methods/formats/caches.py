"""How keys and values are kept while a model reads and decodes: a property of the model.

A cached number is `minimum + scale * code`, where some numbers share a minimum and a scale of
float16, plus what else the format has: outliers beside it, and a low rank.  Which numbers share,
and when they are rounded, follows from `together`:

- 1: every position by itself, as it comes.  The numbers of a head share, in keys and in values
- more: so many positions at once, when the last of them is there.  Until then they are floats.
  Keys share along the positions, each channel of a head by itself; values as above
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError, RecordError

SHARED_BYTES = 2 * 2  # a minimum and a scale, float16
OUTLIER_BYTES = 2 + 2  # a number of float16, and where it stands
FACTOR_BYTES = 2  # a number of float16 in a factor of the low rank


@dataclass(frozen=True)
class CacheFormat:
    """What a cache holds.

    bits: of a code, 2 to 8   together: positions that are rounded at once
    outliers: share of the numbers kept beside the codes: half of them the largest, half the
        smallest, of a key's channel in these positions and of a position's values in all heads
    rank: of what is added for the rounding error of a head, in these positions
    """

    bits: int
    together: int = 1
    outliers: float = 0.0
    rank: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that make no cache."""
        if self.bits not in range(2, 9) or self.together < 1 or self.rank < 0:
            msg = f"cache: {self.bits} bits, {self.together} positions together, rank {self.rank}."
            raise ConfigError(msg)
        if not 0 <= self.outliers < 1 or (self.together == 1 and (self.outliers or self.rank)):
            msg = (
                f"cache: outliers {self.outliers} and rank {self.rank} do not go with "
                f"{self.together} positions together."
            )
            raise ConfigError(msg)

    @property
    def label(self) -> str:
        """'int8 token and head', or 'int2 of 64 positions + 2% outliers + rank 4'."""
        if self.together == 1:
            return f"int{self.bits} token and head"
        words = [f"int{self.bits} of {self.together} positions"]
        if self.outliers:
            words.append(f"+ {100 * self.outliers:g}% outliers")
        if self.rank:
            words.append(f"+ rank {self.rank}")
        return " ".join(words)

    def bytes_at(self, positions: int, heads: int, width: int, float_bytes: int) -> int:
        """Of the keys and values of one block and sequence.

        heads: of keys   float_bytes: of a number that is not rounded yet
        """
        rounded = positions // self.together
        waiting = positions % self.together * heads * width * float_bytes * 2
        return rounded * self._rounded_bytes(heads, width) + waiting

    def _rounded_bytes(self, heads: int, width: int) -> int:
        """Of the keys and values that are rounded at once."""
        together, channels = self.together, heads * width
        codes = 2 * ceil(together * channels * self.bits / 8)
        key_shares = heads if together == 1 else channels
        shared = SHARED_BYTES * (key_shares + together * heads)
        factors = FACTOR_BYTES * 2 * heads * self.rank * (together + width)
        return codes + shared + factors + OUTLIER_BYTES * self._outliers(channels)

    def _outliers(self, channels: int) -> int:
        if not self.outliers:
            return 0
        keys = channels * 2 * self.at_an_end(self.together)
        return keys + self.together * 2 * self.at_an_end(channels)

    def at_an_end(self, numbers: int) -> int:
        """How many of the largest of so many numbers are outliers, and how many of the smallest."""
        return ceil(self.outliers / 2 * numbers)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `config.json`; `from_json` reads it back."""
        return {**asdict(self), "label": self.label}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "CacheFormat":
        """Read what `to_json` wrote; RecordError if it is not that."""
        try:
            own = {key: value for key, value in data.items() if key != "label"}
            return CacheFormat(**own)
        except (ConfigError, TypeError, AttributeError) as error:
            msg = f"cache format {data}: cannot be read ({error!r})."
            raise RecordError(msg) from error


@dataclass(frozen=True, eq=False)
class CacheCodes:
    """Some cached numbers, those of the last axis sharing a minimum and a scale.

    codes: uint8 [..., n]   minimum, scale: float16 [..., 1]
    """

    codes: Tensor
    minimum: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """-> float32 [..., n]"""
        return self.codes.float() * self.scale.float() + self.minimum.float()


def cache_codes(x: Tensor, bits: int) -> CacheCodes:
    """Numbers between the smallest and the largest of the last axis, in 2^bits - 1 steps.

    Minimum and scale are rounded before codes follow from them, so that what was rounded is what is
    decoded.  Where all are equal the scale is 0, and every code too.
    x: float32 [..., n]
    """
    top = 2**bits - 1
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    minimum, scale = low.half(), ((high - low) / top).half()
    step = scale.float()
    codes = (x - minimum.float()) / torch.where(step > 0, step, torch.inf)
    return CacheCodes(codes.round().clamp(0, top).to(torch.uint8), minimum, scale)
