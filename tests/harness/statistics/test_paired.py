"""Paired tests: exact where that can be checked by hand, right error rates where it cannot."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics import comparison, intervals, paired

SEED = 20260101
TRIALS = 1000


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer resamples and flips: a thousand trials in a few seconds."""
    monkeypatch.setattr(intervals, "RESAMPLES", 20)
    monkeypatch.setattr(paired, "DRAWS", 2000)


def answers(rng: np.random.Generator, n: int, gain: float = 0.0) -> tuple[list[float], list[float]]:
    """Two models' answers to n questions that are equally hard for both; ours knows `gain` more."""
    ease = rng.beta(2, 2, n)
    ours = rng.random(n) < np.clip(ease + gain, 0, 1)
    return ours.astype(float).tolist(), (rng.random(n) < ease).astype(float).tolist()


def losses(rng: np.random.Generator, n: int, shift: float = 0.0) -> tuple[list[float], list[float]]:
    """Two models' window losses; windows differ much more than the models do."""
    text = rng.normal(3.0, 0.4, n)
    ours, baseline = text + rng.normal(0, 0.03, (2, n))
    return (ours + shift).tolist(), baseline.tolist()


def measured(name: str, metric: str, samples: list[float]) -> Measurement:
    higher = metric == "acc"
    value = float(np.mean(samples)) if higher else math.exp(float(np.mean(samples)))
    return Measurement(
        name=name,
        metric=metric,
        value=value,
        unit="1",
        higher_is_better=higher,
        path="reference",
        engine="torch",
        samples=samples,
    )


def table(rng: np.random.Generator, gain: float = 0.0) -> list[comparison.Outcome]:
    """A row of a table against its baseline: a perplexity of ten windows, three tasks, the mean."""
    both: list[list[Measurement]] = [[], []]
    for model, samples in zip(both, losses(rng, 10, -gain), strict=True):
        model.append(measured("wikitext2", "perplexity", samples))
    for task in ("piqa", "arc_easy", "winogrande"):
        for model, samples in zip(both, answers(rng, 100, gain), strict=True):
            model.append(measured(task, "acc", samples))
    for model in both:
        mean = measured("average", "acc", [float(np.mean(m.samples)) for m in model[1:]])
        model.append(mean.model_copy(update={"details": {"tasks": [m.name for m in model[1:]]}}))
    return comparison.judge(comparison.pairs(*both))


@pytest.mark.usefixtures("quick")
def test_of_a_thousand_identical_pairs_at_most_fifty_rows_say_that_something_differs() -> None:
    rng = np.random.default_rng(SEED)
    rows = [table(rng) for _ in range(TRIALS)]
    assert all(len(row) == 5 for row in rows)
    false = sum(any(cell.verdict != "no difference shown" for cell in row) for row in rows)
    assert false <= 0.05 * TRIALS
    assert false > 0  # a test that never speaks would pass the line above


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("windows", [10, 40])
def test_one_perplexity_test_alone_errs_as_often_as_it_says(windows: int) -> None:
    rng = np.random.default_rng(SEED)
    pairs = (losses(rng, windows) for _ in range(TRIALS))
    false = sum(paired.compare([a], [b]).p_value < paired.ALPHA for a, b in pairs)
    # 1000 draws at 0.05: the 99.9 % quantile of the binomial is 73.
    assert 0.02 * TRIALS <= false <= stats.binom.ppf(0.999, TRIALS, 0.05)


@pytest.mark.usefixtures("quick")
def test_mcnemar_errs_less_often_than_it_says() -> None:
    rng = np.random.default_rng(SEED)
    pairs = (answers(rng, 100) for _ in range(TRIALS))
    assert sum(intervals.mcnemar(a, b) < paired.ALPHA for a, b in pairs) <= 0.05 * TRIALS


@pytest.mark.usefixtures("quick")
def test_skewed_losses_do_not_raise_the_error_rate() -> None:
    rng = np.random.default_rng(SEED)
    noise = rng.exponential(0.05, (TRIALS, 2, 10))
    false = sum(paired.compare([a], [b]).p_value < paired.ALPHA for a, b in noise)
    assert false <= stats.binom.ppf(0.999, TRIALS, 0.05)


@pytest.mark.usefixtures("quick")
def test_a_difference_of_the_detectable_size_is_found_four_times_of_five() -> None:
    rng = np.random.default_rng(SEED)
    for draw, n in ((losses, 20), (answers, 400)):
        strata = (np.subtract(*draw(rng, 20_000)),)
        spread = float(strata[0].std()) / math.sqrt(n)
        quantiles = stats.t.ppf([0.975, 0.8], n - 1)
        least = float(quantiles.sum()) * spread
        found = sum(
            paired.compare([a], [b]).p_value < paired.ALPHA
            for a, b in (draw(rng, n, least) for _ in range(300))
        )
        # Clipped abilities and the exact test's discreteness cost answers a few points of power.
        assert 0.70 <= found / 300 <= 0.90


@pytest.mark.usefixtures("quick")
def test_the_printed_detectable_difference_is_the_one_that_power_is_stated_for() -> None:
    rng = np.random.default_rng(SEED)
    printed = [paired.compare(*[[x] for x in losses(rng, 20)]).detectable() for _ in range(300)]
    expected = float(stats.t.ppf([0.975, 0.8], 19).sum()) * 0.03 * math.sqrt(2 / 20)
    assert np.mean([p for p in printed if p is not None]) == pytest.approx(expected, rel=0.05)


@pytest.mark.usefixtures("quick")
def test_large_true_differences_are_found_in_every_cell() -> None:
    rng = np.random.default_rng(SEED)
    rows = [table(rng, gain=0.3) for _ in range(50)]
    cells = [cell.verdict for row in rows for cell in row]
    assert cells.count("better") >= 0.95 * len(cells)
    assert "worse" not in cells


def test_sign_flips_are_all_sign_flips() -> None:
    differences = np.array([0.3, -0.1, 0.4, 0.2, 0.25, -0.05, 0.6])
    observed = abs(differences.sum())
    flipped = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=7)]
    expected = sum(value >= observed - 1e-12 for value in flipped) / 2**7
    assert paired.sign_flip([differences])[0] == pytest.approx(expected)


def test_the_studentized_interval_holds_zero_exactly_if_the_test_says_so() -> None:
    rng = np.random.default_rng(SEED)
    for shift in np.linspace(0.0, 0.6, 13):
        found = paired.compare([rng.normal(shift, 0.5, 12)], [np.zeros(12)])
        assert found.interval is not None
        holds = found.interval.low <= 0 <= found.interval.high
        assert holds == (found.p_value >= 0.05)


def test_the_studentized_interval_is_near_students_on_many_normal_differences() -> None:
    differences = np.random.default_rng(SEED).normal(0.1, 0.5, 200)
    found = paired.compare([differences], [np.zeros(200)])
    expected = stats.t.interval(
        0.95, 199, differences.mean(), differences.std(ddof=1) / math.sqrt(200)
    )
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx(expected, abs=2e-3)


def test_huge_differences_on_ten_windows_survive_the_correction_of_a_large_table() -> None:
    rng = np.random.default_rng(SEED)
    assert paired.compare(*[[x] for x in losses(rng, 10, 5.0)]).p_value < 0.05 / 500


def test_flipping_equal_sizes_together_gives_the_binomial_tail() -> None:
    differences = np.array([1.0] * 30 + [-1.0] * 14)
    p_value, how = paired.sign_flip([differences])
    assert "random" in how
    assert p_value == pytest.approx(stats.binomtest(30, 44, 0.5).pvalue, abs=0.003)


def test_a_p_value_is_never_zero() -> None:
    assert 0 < paired.sign_flip([np.ones(5000)])[0] <= 1e-4


def test_equal_samples_have_p_value_one() -> None:
    same = [0.5, 0.25, 1.0]
    assert paired.compare([same], [same]).p_value == 1.0


def test_strata_weigh_the_same_however_many_samples_they_have() -> None:
    found = paired.compare([[1.0] * 4, [0.0] * 1000], [[0.0] * 4, [0.0] * 1000])
    assert found.difference == 0.5


def test_holm_of_a_textbook_example() -> None:
    # Four p values: 4 * 0.005, 3 * 0.01, 2 * 0.03 and 0.04 raised to the one before.
    assert paired.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_of_one_is_itself_and_none_is_none() -> None:
    assert paired.holm([0.2]) == [0.2]
    assert paired.holm([]) == []


def test_holm_never_exceeds_one() -> None:
    assert max(paired.holm([0.5, 0.9, 0.8])) == 1.0


@pytest.mark.parametrize(("windows", "possible"), [(3, False), (4, True)])
def test_too_few_windows_can_show_nothing(windows: int, possible: bool) -> None:
    rng = np.random.default_rng(SEED)
    found = paired.compare(*[[x] for x in losses(rng, windows)])
    assert (found.detectable() is not None) is possible
    # Far from 0, only resamples without spread are as extreme: windows^(1 - windows) of them.
    extreme = paired.compare([[1e6 + k for k in range(windows)]], [[0.0] * windows])
    assert extreme.p_value == pytest.approx(windows ** (1 - windows), rel=0.1)
    assert (extreme.p_value < paired.ALPHA) is possible


def test_answers_that_agree_everywhere_still_need_six_one_sided_disagreements() -> None:
    right = [1.0] * 60 + [0.0] * 40
    assert paired.compare([right], [right]).detectable() == pytest.approx(0.06)


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="equally long"):
        paired.compare([[1.0, 2.0]], [[1.0]])
