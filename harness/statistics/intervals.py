"""Intervals and tests on raw samples.  Pure functions; every random one takes its seed.

Bootstrap intervals are percentile intervals.  With fewer than two samples there is no interval:
None.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trinity.harness.records.measurement import Interval

RESAMPLES = 10_000
_BLOCK = 4_000_000  # resampled values held at once

Floats = NDArray[np.float64]
Array = NDArray[Any]  # bool or float64


def perplexity_interval(
    losses: ArrayLike, *, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """exp of the mean loss, windows resampled; None too where no float64 holds its upper end.

    losses: [windows]
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = _interval(
            [losses], lambda x: np.exp(x.mean(axis=-1)), level, seed, "bootstrap over windows"
        )
    return found if found and math.isfinite(found.high) else None


def mean_interval(samples: ArrayLike, *, level: float = 0.95, seed: int = 0) -> Interval | None:
    """The mean, samples resampled.  samples: [windows]"""
    return _interval(
        [samples], lambda x: x.mean(axis=-1), level, seed, "bootstrap over windows, mean"
    )


def median_interval(samples: ArrayLike, *, level: float = 0.95, seed: int = 0) -> Interval | None:
    """The median, samples resampled.  samples: [repetitions]"""
    return _interval(
        [samples], lambda x: np.median(x, axis=-1), level, seed, "bootstrap of the median"
    )


def average_interval(
    strata: Sequence[ArrayLike], *, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """The mean of the tasks' means, examples resampled in each.  strata: [tasks] of [examples]"""

    def average(*groups: Floats) -> Floats:
        means: Floats = np.mean([group.mean(axis=-1) for group in groups], axis=0)
        return means

    return _interval(strata, average, level, seed, "bootstrap stratified by task")


def wilson_interval(correct: int, total: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (1927), without continuity correction."""
    # Imported here: it takes most of a second, and tables render without it.
    from scipy import stats

    bounds = stats.binomtest(correct, total).proportion_ci(confidence_level=level, method="wilson")
    return Interval(low=bounds.low, high=bounds.high, level=level, method="Wilson")


def quartiles(samples: ArrayLike) -> tuple[float, float, float]:
    """First quartile, median, third quartile (linear interpolation).  samples: [repetitions]"""
    low, middle, high = np.quantile(np.asarray(samples, dtype=np.float64), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """mean(a) - mean(b), pairs resampled.  a, b: [pairs], both on the same examples or windows"""
    return _paired(a, b, lambda x, y: (x - y).mean(axis=-1), level, seed, "difference of means")


def stratified_difference(
    a: Sequence[ArrayLike], b: Sequence[ArrayLike], *, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """Mean over strata of mean(a) - mean(b), pairs resampled in each.  a, b: [strata] of [pairs]"""
    differences = [
        np.subtract(*_pair(np.asarray(x, np.float64), np.asarray(y, np.float64)))
        for x, y in zip(a, b, strict=True)
    ]

    def average(*groups: Floats) -> Floats:
        means: Floats = np.mean([group.mean(axis=-1) for group in groups], axis=0)
        return means

    name = "paired bootstrap, difference of means"
    return _interval(differences, average, level, seed, name)


def paired_ratio(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """median(a) / median(b), pairs resampled.  a, b: [pairs], positive, measured alternately"""
    return _paired(
        a,
        b,
        lambda x, y: np.median(x, axis=-1) / np.median(y, axis=-1),
        level,
        seed,
        "ratio of medians",
    )


def unpaired_ratio(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, seed: int = 0
) -> Interval | None:
    """median(a) / median(b), each resampled alone.  a: [m], b: [n], positive"""

    def ratio(x: Floats, y: Floats) -> Floats:
        return np.median(x, axis=-1) / np.median(y, axis=-1)

    return _interval([a, b], ratio, level, seed, "bootstrap of each, ratio of medians")


def mcnemar(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided p value that both are equally often right.  a, b: [examples], 1 is right"""
    right_a, right_b = _pair(np.asarray(a) != 0, np.asarray(b) != 0)
    only_a = int(np.sum(right_a & ~right_b))
    only_b = int(np.sum(right_b & ~right_a))
    if only_a + only_b == 0:
        return 1.0
    return _both_tails(min(only_a, only_b), only_a + only_b)


def _both_tails(fewer: int, total: int) -> float:
    """Two-sided p value of `fewer` of `total` fair coins: counted in integers, rounded once."""
    ways, sequences = 1, 0
    for k in range(fewer + 1):
        sequences += ways
        ways = ways * (total - k) // (k + 1)
    return min(1.0, float(Fraction(2 * sequences, 2**total)))


def _paired(
    a: ArrayLike,
    b: ArrayLike,
    statistic: Callable[[Floats, Floats], Floats],
    level: float,
    seed: int,
    name: str,
) -> Interval | None:
    pairs = np.stack(_pair(np.asarray(a, np.float64), np.asarray(b, np.float64)), axis=-1)

    def of_pairs(resampled: Floats) -> Floats:
        return statistic(resampled[..., 0], resampled[..., 1])

    return _interval([pairs], of_pairs, level, seed, f"paired bootstrap, {name}")


def _pair(a: Array, b: Array) -> tuple[Array, Array]:
    if a.shape != b.shape or a.ndim != 1:
        msg = f"pairs need two equally long lists, found shapes {a.shape} and {b.shape}"
        raise ValueError(msg)
    return a, b


def _interval(
    groups: Sequence[ArrayLike],
    statistic: Callable[..., Floats],
    level: float,
    seed: int,
    method: str,
) -> Interval | None:
    """Resample along first axes; `statistic` maps [resamples, n, ...] arrays to [resamples]."""
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not arrays or min(len(array) for array in arrays) < 2:
        return None
    rng = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, _BLOCK // sum(array.size for array in arrays)))
    values: list[Floats] = []
    for start in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - start)
        drawn = [array[rng.integers(0, len(array), (count, len(array)))] for array in arrays]
        values.append(statistic(*drawn))
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    method = f"{method}, percentile, {RESAMPLES} resamples, seed {seed}"
    return Interval(low=float(low), high=float(high), level=level, method=method)
