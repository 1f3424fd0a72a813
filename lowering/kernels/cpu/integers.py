"""Which codes are integers in steps, so that the dot products of a processor multiply them exactly.

Codes of a uniform grid are, whether its zero points are integers or not.  Those of a table are
where all of its levels are whole multiples of one step, at most 255 steps apart: E2M1's are 0 to 24
half steps, less 12.  One byte shuffle makes these bytes of the codes.  The levels of NF4 are no
multiples of anything: `levels.py`.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import gcd, lcm

from trinity.methods.formats import Grid, WeightFormat
from trinity.methods.formats.level_tables import levels

LARGEST_BYTE = 255
LEAST, MOST = -128, 127  # signed bytes
SHUFFLED = 16  # entries of a table that one byte shuffle looks up


@dataclass(frozen=True)
class Integers:
    """Codes as unsigned bytes: a weight is `step * (byte - zero)` times its scale.

    largest: byte   zero: None where each scale group has its own   step: of two neighbours
    table: the byte of every code, None where codes are the bytes
    """

    largest: int
    zero: int | None
    step: float = 1.0
    table: tuple[int, ...] | None = None

    @property
    def furthest(self) -> int:
        """The largest magnitude of a byte less its zero point."""
        return self.largest if self.zero is None else max(self.zero, self.largest - self.zero)

    @property
    def fit_signed(self) -> bool:
        """Whether bytes less their zero point fit a signed byte."""
        if self.zero is None:
            return self.largest <= MOST
        return -self.zero >= LEAST and self.largest - self.zero <= MOST


def integers_of(weight_format: WeightFormat) -> Integers | None:
    """Those of a format's codes; None of floats, and of levels that are no integers."""
    if nested := weight_format.nested:
        return Integers(2**nested.bits - 1, 0)  # their zero points are floats, and come off later
    values = weight_format.coded
    if values is None:
        return None
    if isinstance(values, Grid):
        zero = 2 ** (values.bits - 1) if values.symmetric else None
        return Integers(2**values.bits - 1, zero)
    return _of_table(values.table)


@cache
def _of_table(table: str) -> Integers | None:
    found = levels(table).tolist()
    if len(found) > SHUFFLED:
        return None
    exact = [Fraction(level) for level in found]
    shared = lcm(*(level.denominator for level in exact))
    whole = [int(level * shared) for level in exact]
    step = gcd(*whole)
    whole = [number // step for number in whole]
    least = min(whole)
    if max(whole) - least > LARGEST_BYTE:
        return None
    return Integers(
        max(whole) - least, -least, step / shared, tuple(number - least for number in whole)
    )
