"""Tests between two models on the same samples, and what such a test could have shown at all.

Three tests, one for each kind of sample:

- right or wrong answers: McNemar's exact test;
- means over several tasks: flips of signs, by task (Fisher 1935).  If both models are equally good,
  each disagreement is as likely the other way round;
- numbers (losses of windows, divergences): the paired bootstrap of Student's t, symmetric (Hall
  1988).  A percentile bootstrap of the mean is too narrow on few samples: on ten windows it calls 9
  of 100 equal pairs different.

For numbers, the interval beside the p value is of the same bootstrap, so the two agree.  Windows of
one text are resampled by cluster (`clusters`), where their record says which are alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trinity.harness.records.measurement import Interval
from trinity.harness.statistics import intervals
from trinity.harness.statistics.clusters import Clustered, errors

Floats = NDArray[np.float64]

ALPHA, POWER = 0.05, 0.8
DRAWS = 20_000  # random flips or resamples: the smallest p value is 5e-5
_ALL_FLIPS_UP_TO = 14  # samples: 16384 flips
_BLOCK = 4_000_000  # numbers held at once
_ROUNDING = 1e-12  # relative: equal means that were summed in another order


@dataclass(frozen=True, eq=False)
class Resampled:
    """What resamples of these very pairs say of a mean without a difference.

    drawn: [DRAWS] |t| of each, rising; infinite where a resample has no spread
    error: standard error of the mean   freedom: clusters, less one
    """

    drawn: Floats
    error: float
    freedom: int

    def detectable(self, alpha: float, power: float) -> float | None:
        """The least true difference found: as far as the test asks, and Student's t(power) more."""
        hits = math.ceil(alpha * (1 + DRAWS)) - 2  # so many as extreme are still below alpha
        asked = math.inf if hits < 0 else float(self.drawn[-1 - hits])
        if self.freedom < 1 or math.isinf(asked):
            return None
        return (asked + _quantile(self.freedom, power)) * self.error


@dataclass(frozen=True)
class Paired:
    """What the paired samples of two models say.

    difference: ours minus the baseline's, in the unit of the samples (log for perplexity)
    interval: of the difference; None with fewer than two pairs
    p_value: two-sided, that the two are equally good   test: how it was made
    strata: paired differences, by task; what `detectable` is computed from
    resampled: of numbers, the resamples that the test counted
    """

    difference: float
    interval: Interval | None
    p_value: float
    test: str
    strata: tuple[Floats, ...]
    resampled: Resampled | None = None

    def detectable(self, alpha: float = ALPHA, power: float = POWER) -> float | None:
        """The least true difference that this test would find, `power` of the time, at `alpha`.

        From the spread of these very pairs.  None if no outcome of so few pairs reaches `alpha`.
        """
        if self.resampled is not None:
            return self.resampled.detectable(alpha, power)
        return detectable_difference(self.strata, alpha, power)


def compare(
    ours: Sequence[ArrayLike],
    baseline: Sequence[ArrayLike],
    *,
    clusters: Sequence[int] | None = None,
    seed: int = 0,
) -> Paired:
    """Compare the means of paired samples; with several strata (tasks), the means of their means.

    ours, baseline: [strata] of [samples], the i-th samples of both on the same example or window
    clusters: of a single stratum's samples, which are then numbers: those alike have one number
    """
    strata = tuple(_differences(a, b) for a, b in zip(ours, baseline, strict=True))
    if not strata or min(map(len, strata)) < 1:
        msg = "a paired comparison needs at least one pair in every stratum"
        raise ValueError(msg)
    binary = all(np.isin(np.asarray(x), (0, 1)).all() for x in (*ours, *baseline))
    if clusters is not None or (len(strata) == 1 and not binary):
        return studentized(strata[0], clusters, seed=seed)
    interval = intervals.stratified_difference(ours, baseline, seed=seed)
    if len(strata) == 1:
        p_value, test = intervals.mcnemar(ours[0], baseline[0]), "McNemar, exact"
    else:
        p_value, test = sign_flip(strata, seed=seed)
    return Paired(_mean(strata), interval, p_value, test, strata)


def studentized(
    differences: Floats,
    clusters: Sequence[int] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Paired:
    """Symmetric bootstrap-t of a mean: whether it is 0, its interval, and what could be shown.

    differences: [pairs]   clusters: [pairs], which are alike and are drawn together (None: none)

    A resample of one cluster repeated has no spread and counts as extreme, so the p value of n
    clusters is never below n^(1-n).
    """
    pairs = Clustered.of(differences, clusters)
    n, mean, error = len(pairs), pairs.mean, pairs.error
    over = "" if clusters is None else f" over {n} clusters of {len(differences)} windows"
    test = f"paired bootstrap{over}, Student's t, symmetric, {DRAWS} resamples, seed {seed}"

    def found(p_value: float, reach: float | None, drawn: Floats) -> Paired:
        between = None
        if reach is not None:
            between = Interval(low=mean - reach, high=mean + reach, level=level, method=test)
        kept = Resampled(drawn, error, n - 1)
        return Paired(_mean((differences,)), between, p_value, test, (differences,), kept)

    if n < 2 or pairs.lopsided:
        if n >= 2:
            test = f"none: too few and too unequal clusters ({n})"
        return found(1.0, None, np.full(DRAWS, np.inf))
    if error <= _ROUNDING * abs(mean):  # the same difference in every pair
        flat = np.arange(DRAWS) >= DRAWS * (1 - pairs.least_p_value)
        p_value = 1.0 if mean == 0 else max(pairs.least_p_value, 1 / (1 + DRAWS))
        return found(p_value, 0.0, np.where(flat, np.inf, 0.0))
    drawn = np.sort(_resampled_t(pairs, seed))
    hits = int((drawn >= abs(mean) / error * (1 - _ROUNDING)).sum())
    reach = float(np.quantile(drawn, level, method="higher")) * error
    # One more of each: the observed sample is one that could have been drawn, so p is never 0.
    return found((1 + hits) / (1 + DRAWS), reach, drawn)


def sign_flip(strata: Sequence[Floats], *, seed: int = 0) -> tuple[float, str]:
    """Two-sided p value that the differences are symmetric about 0, and how it was made.

    strata: [strata] of paired differences; the statistic is the mean of their means
    """
    weighted = np.concatenate([x / (len(x) * len(strata)) for x in strata])
    weighted = weighted[weighted != 0]
    reached = abs(float(weighted.sum())) * (1 - _ROUNDING)
    if len(weighted) == 0:
        return 1.0, "sign flips, no difference"
    if len(weighted) <= _ALL_FLIPS_UP_TO:
        flips = np.arange(2 ** len(weighted))[:, None] >> np.arange(len(weighted))
        means = np.abs((1 - 2 * (flips & 1)) @ weighted)
        return float((means >= reached).mean()), f"sign flips, all {len(means)}"
    # Differences of one size are flipped together: how many of them is binomial.
    sizes, counts = np.unique(np.abs(weighted), return_counts=True)
    flipped = np.random.default_rng(seed).binomial(counts, 0.5, size=(DRAWS, len(counts)))
    hits = int((np.abs((counts - 2 * flipped) @ sizes) >= reached).sum())
    return (1 + hits) / (1 + DRAWS), f"sign flips, {DRAWS} random, seed {seed}"


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (1979): reject where it is below alpha, and no more than a share
    alpha of tables without any true difference says that there is one.
    """
    order = np.argsort(np.asarray(p_values, dtype=np.float64), kind="stable")
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[int(index)]))
        adjusted[int(index)] = worst
    return adjusted


def detectable_difference(
    strata: Sequence[Floats], alpha: float = ALPHA, power: float = POWER
) -> float | None:
    """The least true difference found with probability `power`; None if none can be.

    strata: [strata] of paired differences.  Normal theory with Student's quantiles: (t(alpha/2) +
    t(power)) standard errors.  For answers (differences of -1, 0, 1) never less than the one-sided
    disagreements that the exact test needs.
    """
    answers = all(np.isin(x, (-1, 0, 1)).all() for x in strata)
    total = sum(map(len, strata))
    freedom = total - len(strata)
    if 2.0 ** (1 - total) >= alpha or freedom < 1:
        return None
    variance = sum(float(x.var(ddof=1)) / len(x) for x in strata if len(x) > 1) / len(strata) ** 2
    asked = _quantile(freedom, 1 - alpha / 2)
    least = (asked + _quantile(freedom, power)) * math.sqrt(variance)
    if answers:
        needed = math.ceil(1 - math.log2(alpha))  # 2 * 0.5^needed < alpha
        least = max(least, needed / (max(map(len, strata)) * len(strata)))
    return least


def _quantile(freedom: int, share: float) -> float:
    """Of Student's t."""
    # Imported here, and not all of scipy.stats: three times faster, for one function.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def _differences(a: ArrayLike, b: ArrayLike) -> Floats:
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1:
        msg = f"pairs need two equally long lists, found shapes {one.shape} and {other.shape}"
        raise ValueError(msg)
    difference: Floats = one - other
    return difference


def _mean(strata: Sequence[Floats]) -> float:
    return float(np.mean([x.mean() for x in strata]))


def _resampled_t(pairs: Clustered, seed: int) -> Floats:
    """|t| of each resample about the observed mean; infinite where a resample has no spread."""
    rng, n = np.random.default_rng(seed), len(pairs)
    found: list[Floats] = []
    block = max(1, min(DRAWS, _BLOCK // n))
    for start in range(0, DRAWS, block):
        drawn = rng.integers(0, n, (min(block, DRAWS - start), n))
        sums, sizes = pairs.sums[drawn], pairs.sizes[drawn]
        shift = np.abs(sums.sum(axis=1) / sizes.sum(axis=1) - pairs.mean)
        error = errors(sums, sizes)
        flat = error <= _ROUNDING * np.abs(sums / sizes).max(axis=1)
        found.append(np.where(flat, np.inf, shift / np.where(flat, 1.0, error)))
    return np.concatenate(found)
