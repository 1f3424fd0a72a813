import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from trinity.harness.statistics import intervals as statistics

RNG_SEED = 20240611


def test_wilson_solves_its_defining_equation() -> None:
    interval = statistics.wilson_interval(13, 50)
    z = 1.959963984540054
    for bound in (interval.low, interval.high):
        assert abs(13 / 50 - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / 50))
    assert interval.low < 13 / 50 < interval.high


@pytest.mark.parametrize(("correct", "end"), [(0, "low"), (20, "high")])
def test_wilson_touches_the_end_when_all_or_none_is_right(correct: int, end: str) -> None:
    interval = statistics.wilson_interval(correct, 20)
    assert getattr(interval, end) == pytest.approx(correct / 20)
    assert interval.low < interval.high


def test_perplexity_interval_is_near_the_delta_method_on_many_windows() -> None:
    losses = np.random.default_rng(RNG_SEED).normal(3.0, 0.3, 400)
    interval = statistics.perplexity_interval(losses)
    assert interval is not None
    error = losses.std(ddof=1) / math.sqrt(len(losses))
    assert interval.low == pytest.approx(math.exp(losses.mean() - 1.96 * error), rel=3e-3)
    assert interval.high == pytest.approx(math.exp(losses.mean() + 1.96 * error), rel=3e-3)


def test_perplexity_interval_covers_the_truth_about_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(RNG_SEED)
    covered = 0
    for _ in range(400):
        interval = statistics.perplexity_interval(rng.normal(3.0, 0.3, 40))
        assert interval is not None
        covered += interval.low <= math.exp(3.0) <= interval.high
    # 400 trials of 0.95: standard error 0.011; percentile intervals are known to be slightly short.
    assert 0.90 <= covered / 400 <= 0.98


def test_median_interval_covers_the_truth_about_as_often_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(RNG_SEED)
    covered = 0
    for _ in range(400):
        interval = statistics.median_interval(rng.exponential(1.0, 30))
        assert interval is not None
        covered += interval.low <= math.log(2) <= interval.high
    assert 0.90 <= covered / 400 <= 0.99


def test_wilson_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(RNG_SEED)
    intervals = [statistics.wilson_interval(int(k), 100) for k in rng.binomial(100, 0.3, 1000)]
    assert 0.93 <= np.mean([i.low <= 0.3 <= i.high for i in intervals]) <= 0.97


def test_average_weighs_a_small_task_like_a_large_one() -> None:
    interval = statistics.average_interval([[1.0] * 4, [0.0] * 1000])
    assert interval is not None
    assert (interval.low, interval.high) == (0.5, 0.5)


def test_average_interval_has_the_spread_of_independent_tasks() -> None:
    rng = np.random.default_rng(RNG_SEED)
    tasks = [rng.binomial(1, p, 500).astype(float) for p in (0.3, 0.5, 0.8)]
    interval = statistics.average_interval(tasks)
    assert interval is not None
    error = math.sqrt(sum(task.var() / len(task) for task in tasks)) / len(tasks)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_quartiles_of_five_are_the_second_third_and_fourth() -> None:
    assert statistics.quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == (2.0, 3.0, 4.0)


def test_a_constant_difference_has_no_spread_however_noisy_the_pairs() -> None:
    noise = np.random.default_rng(RNG_SEED).normal(0, 100, 30)
    interval = statistics.paired_difference(noise + 2.0, noise)
    assert interval is not None
    assert interval.low == pytest.approx(2.0)
    assert interval.high == pytest.approx(2.0)


def test_a_constant_ratio_has_no_spread_however_noisy_the_pairs() -> None:
    noise = np.random.default_rng(RNG_SEED).uniform(1, 100, 31)
    interval = statistics.paired_ratio(3.0 * noise, noise)
    assert interval is not None
    assert interval.low == pytest.approx(3.0)
    assert interval.high == pytest.approx(3.0)


def test_unequal_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        statistics.paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_mcnemar_is_twice_the_binomial_tail_of_the_disagreements() -> None:
    a = [1] * 9 + [0] * 2 + [1] * 30 + [0] * 20
    b = [0] * 9 + [1] * 2 + [1] * 30 + [0] * 20
    tail = sum(Fraction(math.comb(11, k), 2**11) for k in range(3))
    assert statistics.mcnemar(a, b) == pytest.approx(float(2 * tail))


def test_mcnemar_of_equal_answers_is_one() -> None:
    assert statistics.mcnemar([1, 0, 1], [1, 0, 1]) == 1.0


def test_one_seed_gives_one_interval() -> None:
    losses = np.random.default_rng(RNG_SEED).normal(3.0, 0.3, 20)
    assert statistics.perplexity_interval(losses) == statistics.perplexity_interval(losses)
    assert statistics.perplexity_interval(losses) != statistics.perplexity_interval(losses, seed=1)


def test_one_sample_has_no_interval() -> None:
    assert statistics.perplexity_interval([3.0]) is None
    assert statistics.median_interval([3.0]) is None


def test_resampling_in_blocks_is_only_about_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = np.random.default_rng(RNG_SEED).normal(3.0, 0.3, 64)
    whole = statistics.perplexity_interval(losses)
    monkeypatch.setattr(statistics, "_BLOCK", 6400)
    assert statistics.perplexity_interval(losses) == whole


@pytest.mark.parametrize(
    ("better", "worse"), [(0, 1), (3, 3), (0, 12), (7, 20), (130, 190), (1, 0)]
)
def test_mcnemar_is_the_two_sided_binomial_test(better: int, worse: int) -> None:
    a = [1] * better + [0] * worse + [1, 0]
    b = [0] * better + [1] * worse + [1, 0]
    expected = stats.binomtest(better, better + worse, 0.5).pvalue
    assert statistics.mcnemar(a, b) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_of_thousands_of_answers_is_a_number() -> None:
    assert 0 <= statistics.mcnemar([1] * 400 + [0] * 3600, [0] * 400 + [1] * 3600) < 1e-300
