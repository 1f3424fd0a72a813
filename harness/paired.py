"""Tests between two models on the same samples, and what such a test could have shown at all.

Every test flips signs: if two models are equally good, each paired difference is as likely with
the other sign, so the observed mean is compared with the means under all (or many random) ways to
flip signs (Fisher 1935; Pitman 1937).  That is exact at any number of samples, where reading a
verdict from a percentile bootstrap is not: with ten windows it calls 9 of 100 equal pairs
different.  For answers that are right or wrong it is McNemar's exact test.  The intervals beside
the verdicts are paired bootstrap intervals, from `trinity.harness.statistics`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from trinity.harness import statistics
from trinity.harness.records.measurement import Interval

Floats = NDArray[np.float64]

ALPHA, POWER = 0.05, 0.8
FLIPS = 20_000  # random flips where there are too many to try all; the smallest p value is 5e-5
_ALL_FLIPS_UP_TO = 14  # samples: 16384 flips
_BLOCK = 4_000_000  # signs held at once
_ROUNDING = 1e-12  # relative: equal means that were summed in another order


@dataclass(frozen=True)
class Paired:
    """What the paired samples of two models say.

    difference: ours minus the baseline's, in the unit of the samples (log for perplexity)
    interval: of the difference, paired bootstrap; None with fewer than two pairs
    p_value: two-sided, that the two are equally good   test: how it was made
    strata: paired differences, by task; what `detectable` is computed from
    """

    difference: float
    interval: Interval | None
    p_value: float
    test: str
    strata: tuple[Floats, ...]

    def detectable(self, alpha: float = ALPHA, power: float = POWER) -> float | None:
        """The least true difference that this test would find, `power` of the time, at `alpha`.

        From the spread of these very pairs.  None if no outcome of so few pairs reaches `alpha`.
        """
        return detectable_difference(self.strata, alpha, power)


def compare(ours: Sequence[ArrayLike], baseline: Sequence[ArrayLike], *, seed: int = 0) -> Paired:
    """Compare the means of paired samples; with several strata (tasks), the means of their means.

    ours, baseline: [strata] of [samples], the i-th samples of both on the same example or window
    """
    strata = tuple(_differences(a, b) for a, b in zip(ours, baseline, strict=True))
    if not strata or min(map(len, strata)) < 1:
        msg = "a paired comparison needs at least one pair in every stratum"
        raise ValueError(msg)
    binary = all(
        np.isin(np.concatenate([np.asarray(x) for x in (a, b)]), (0, 1)).all()
        for a, b in zip(ours, baseline, strict=True)
    )
    if binary and len(strata) == 1:
        p_value, test = statistics.mcnemar(ours[0], baseline[0]), "McNemar, exact"
    else:
        p_value, test = sign_flip(strata, seed=seed)
    return Paired(
        difference=_mean(strata),
        interval=statistics.stratified_difference(ours, baseline, seed=seed),
        p_value=p_value,
        test=test,
        strata=strata,
    )


def sign_flip(strata: Sequence[Floats], *, seed: int = 0) -> tuple[float, str]:
    """Two-sided p value that the differences are symmetric about 0, and how it was made.

    strata: [strata] of paired differences; the statistic is the mean of their means
    """
    weighted = np.concatenate([x / (len(x) * len(strata)) for x in strata])
    weighted = weighted[weighted != 0]
    observed = abs(float(weighted.sum()))
    if len(weighted) == 0:
        return 1.0, "sign flips, no difference"
    reached = observed * (1 - _ROUNDING)
    if len(weighted) <= _ALL_FLIPS_UP_TO:
        counts = np.arange(2 ** len(weighted))[:, None] >> np.arange(len(weighted))
        means = np.abs((1 - 2 * (counts & 1)) @ weighted)
        return float((means >= reached).mean()), f"sign flips, all {len(means)}"
    hits = int((np.abs(_random_means(weighted, seed)) >= reached).sum())
    # One more of each: the observed signs are one of the possible flips, so p is never 0.
    return (1 + hits) / (1 + FLIPS), f"sign flips, {FLIPS} random, seed {seed}"


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
    total = sum(map(len, strata))
    if 2.0 ** (1 - total) >= alpha:
        return None
    freedom = total - len(strata)
    if freedom < 1:
        return None
    variance = sum(float(x.var(ddof=1)) / len(x) for x in strata if len(x) > 1) / len(strata) ** 2
    quantiles = stats.t.ppf([1 - alpha / 2, power], freedom)
    least = float(quantiles.sum()) * math.sqrt(variance)
    if all(np.isin(x, (-1, 0, 1)).all() for x in strata):
        needed = math.ceil(1 - math.log2(alpha))  # 2 * 0.5^needed < alpha
        least = max(least, needed / (max(map(len, strata)) * len(strata)))
    return least


def _differences(a: ArrayLike, b: ArrayLike) -> Floats:
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1:
        msg = f"pairs need two equally long lists, found shapes {one.shape} and {other.shape}"
        raise ValueError(msg)
    difference: Floats = one - other
    return difference


def _mean(strata: Sequence[Floats]) -> float:
    return float(np.mean([x.mean() for x in strata]))


def _random_means(weighted: Floats, seed: int) -> Floats:
    """Statistics of FLIPS random flips.  Equal sizes are flipped together, by a binomial draw."""
    rng = np.random.default_rng(seed)
    sizes, counts = np.unique(np.abs(weighted), return_counts=True)
    if len(sizes) < len(weighted) // 4:
        flipped = rng.binomial(counts, 0.5, size=(FLIPS, len(counts)))
        means: Floats = (counts - 2 * flipped) @ sizes
        return means
    found: list[Floats] = []
    block = max(1, min(FLIPS, _BLOCK // len(weighted)))
    for start in range(0, FLIPS, block):
        shape = (min(block, FLIPS - start), len(weighted))
        signs = rng.integers(0, 2, size=shape, dtype=np.int8)
        found.append((1 - 2 * signs.astype(np.float64)) @ weighted)
    return np.concatenate(found)
