"""Published tables of levels: what the codes of a codebook stand for.

- `nf4`: the 16 quantiles of a normal distribution of QLoRA (Dettmers et al., arXiv:2305.14314,
  appendix E), scaled to -1 .. 1, with an exact zero.
- `e2m1`: FP4 with 2 bits of exponent and 1 of mantissa (OCP Microscaling Formats 1.0, table 5).
- `e4m3`: FP8 with 4 bits of exponent and 3 of mantissa, without infinity (Micikevicius et al.,
  arXiv:2209.05433, table 1).

A code of the last two is the number's own bits, the sign highest.
"""

from functools import cache

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError, nearest

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _e4m3(code: int) -> float:
    """The number with these bits; NaN where exponent and mantissa are all ones."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if (exponent, mantissa) == (15, 7):
        return float("nan")
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if code >> 7 else size


TABLES: dict[str, tuple[float, ...]] = {
    "nf4": NF4,
    "e2m1": (*E2M1, *(-level for level in E2M1)),
    "e4m3": tuple(map(_e4m3, range(256))),
}
"""By name, the level of every code; NaN for codes that stand for nothing."""


def levels(table: str) -> Tensor:
    """The level of every code.  -> float32 [2^bits], exact"""
    return torch.tensor(_known(table), dtype=torch.float32, device="cpu")


def bits_of(table: str) -> int:
    """Bits of a code."""
    return (len(_known(table)) - 1).bit_length()


def zero_code(table: str) -> int:
    """The first code that stands for zero: every table has one, for what a mask removes."""
    return _known(table).index(0.0)


def largest(table: str) -> float:
    """The largest magnitude of a level."""
    return max(abs(level) for level in _known(table) if level == level)


def nearest_codes(x: Tensor, table: str) -> Tensor:
    """The code of the nearest level; of two equally near the even code, as IEEE rounds.

    x: float32, finite; beyond the last level is the last level  ->  uint8, of its shape
    """
    rising, codes = (found.to(x.device) for found in _sorted(table))
    x = x.contiguous()  # bucketize warns of other orders
    middles = (rising[1:] + rising[:-1]) / 2
    below = codes[torch.bucketize(x, middles, out_int32=True)]
    above = codes[torch.bucketize(x, middles, out_int32=True, right=True)]
    return torch.where(below % 2 == 0, below, above)


@cache
def _sorted(table: str) -> tuple[Tensor, Tensor]:
    """Levels that differ, rising, and their codes: of +0 and -0 the first."""
    places = {level: code for code, level in reversed(list(enumerate(_known(table))))}
    rising = sorted(level for level in places if level == level)
    codes = [places[level] for level in rising]
    return (
        torch.tensor(rising, dtype=torch.float32, device="cpu"),
        torch.tensor(codes, dtype=torch.uint8, device="cpu"),
    )


def _known(table: str) -> tuple[float, ...]:
    if table not in TABLES:
        known = list(TABLES)
        raise ConfigError(f"table '{table}' is not {', '.join(known)}.{nearest(table, known)}")
    return TABLES[table]
