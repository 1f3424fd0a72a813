"""Where a series of numbers steps to another level, as asv finds its regressions.

The series is cut into pieces of one level each, the median.  Of all cuts into k pieces the one with
the least sum of absolute deviations is found exactly, by dynamic programming; k is what makes
n log(deviation) + 4 k log(n) least, so a piece must pay for itself.  Absolute deviations, because
one bad run must not bend a level.
"""

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

_MOST = 12  # pieces: a series with more steps than this has no levels
_LEAST = 6  # numbers: of fewer, noise makes steps (9 % of series of four, 3 % of five)
_PRICE = 4.0  # of a piece, in units of log(n)
_RESOLUTION = 1e-3  # share of a level that no step is smaller than


@dataclass(frozen=True)
class Step:
    """index: of the first number after it   before, after: medians of the pieces beside it

    length: numbers in the piece after it; with one, another run may tell
    """

    index: int
    before: float
    after: float
    length: int


def find(values: Sequence[float]) -> list[Step]:
    """The steps of a series, in order.  values: finite, in the order of time"""
    if not values:
        return []
    starts = pieces(values)
    ends = [*starts[1:], len(values)]
    levels = [_median(sorted(values[start:end])) for start, end in zip(starts, ends, strict=True)]
    return [
        Step(starts[k], levels[k - 1], levels[k], ends[k] - starts[k])
        for k in range(1, len(starts))
        if abs(levels[k] - levels[k - 1]) > _RESOLUTION * max(abs(levels[k]), abs(levels[k - 1]))
    ]


def pieces(values: Sequence[float]) -> list[int]:
    """Where each piece starts; the first starts at 0."""
    n = len(values)
    if n < _LEAST:
        return [0]
    costs = _costs(values)
    best, cuts = _least(costs, n)
    floor = _RESOLUTION * _median(sorted(map(abs, values))) or _RESOLUTION
    scores = [
        n * math.log(best[k][n] / n + floor) + _PRICE * (k + 1) * math.log(n)
        for k in range(len(best))
    ]
    k, end, starts = scores.index(min(scores)), n, []
    while k >= 0:
        end = cuts[k][end]
        starts.append(end)
        k -= 1
    return starts[::-1]


def _costs(values: Sequence[float]) -> list[list[float]]:
    """costs[i][j - i - 1]: sum of absolute deviations from the median of values[i:j]."""
    found = []
    for start in range(len(values)):
        ordered: list[float] = []
        row, cost = [], 0.0
        for value in values[start:]:
            # A new number costs its distance from the nearest median of those before it.
            if ordered:
                low, high = _middle(ordered)
                cost += max(low - value, value - high, 0.0)
            insort(ordered, value)
            row.append(cost)
        found.append(row)
    return found


def _middle(ordered: Sequence[float]) -> tuple[float, float]:
    """The lowest and highest median."""
    return ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]


def _median(ordered: Sequence[float]) -> float:
    low, high = _middle(ordered)
    return (low + high) / 2


def _least(costs: list[list[float]], n: int) -> tuple[list[list[float]], list[list[int]]]:
    """Of k + 1 pieces of the first j numbers: the least cost, and where the last piece starts."""
    best = [[0.0, *costs[0]]]
    cuts = [[0] * (n + 1)]
    for k in range(1, min(_MOST, n // 2 + 1)):
        row, cut = [math.inf] * (n + 1), [0] * (n + 1)
        for j in range(k + 1, n + 1):
            row[j], cut[j] = min((best[k - 1][i] + costs[i][j - i - 1], i) for i in range(k, j))
        best.append(row)
        cuts.append(cut)
    return best, cuts
