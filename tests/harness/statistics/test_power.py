"""Sizes chosen by a power calculation: by hand, and by simulated comparisons."""

import math

import numpy as np
import pytest
from scipy import stats

from trinity.harness.statistics import clusters, paired, power

SEED = 20260103


def test_the_resolution_of_one_task_is_the_textbooks() -> None:
    quantiles = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert power.resolution([400]) == pytest.approx(quantiles * math.sqrt(power.DISCORDANCE / 400))


def test_tasks_of_equal_size_resolve_what_one_of_all_their_questions_does() -> None:
    assert power.resolution([50, 50, 50, 50]) == pytest.approx(power.resolution([200]))


@pytest.mark.parametrize("wanted", [0.03, 0.04, 0.1])
def test_the_number_chosen_is_the_least_that_resolves(wanted: float) -> None:
    available = [14042, 1838, 2376, 1172, 1267, 500]
    number = power.questions_for(wanted, available)
    assert number is not None

    def resolved(limit: int) -> float:
        return power.resolution([min(limit, n) for n in available])

    assert resolved(number) <= wanted < resolved(number - 1)


def test_too_few_questions_give_no_number() -> None:
    assert power.questions_for(0.01, [500, 500]) is None


def test_a_task_with_fewer_questions_makes_the_others_give_more() -> None:
    even, short = (power.questions_for(0.04, sizes) for sizes in ([5000] * 3, [5000, 5000, 300]))
    assert even is not None
    assert short is not None
    assert short > even


def test_what_is_chosen_shows_the_wanted_difference_four_times_of_five(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paired, "DRAWS", 1000)
    monkeypatch.setattr(paired.intervals, "RESAMPLES", 20)
    rng, wanted, tasks = np.random.default_rng(SEED), 0.08, 3
    number = power.questions_for(wanted, [5000] * tasks)
    assert number is not None
    # Of a question only ours is right, only the other is, or both are alike.
    shares = [(power.DISCORDANCE + wanted) / 2, (power.DISCORDANCE - wanted) / 2]
    shown = 0
    for _ in range(200):
        kinds = rng.choice(3, (tasks, number), p=[*shares, 1 - sum(shares)])
        ours, baseline = (kinds != 1).astype(float), (kinds != 0).astype(float)
        shown += paired.compare(list(ours), list(baseline)).p_value < paired.ALPHA
    assert 0.7 <= shown / 200 <= 0.9


def test_the_resolution_of_unlike_windows_is_students_over_them() -> None:
    prior = power.Prior(0.2, alike=0.0)
    quantiles = stats.t.ppf([0.975, 0.8], 19).sum()
    found = power.resolution_of_windows(prior, power.SEQLEN, range(20))
    assert found == pytest.approx(quantiles * 0.2 / math.sqrt(20))


def test_windows_that_are_all_alike_count_as_their_clusters() -> None:
    prior, of_four = power.Prior(0.2, alike=1.0), [k // 4 for k in range(80)]
    assert power.resolution_of_windows(prior, power.SEQLEN, of_four) == pytest.approx(
        power.resolution_of_windows(power.Prior(0.2, alike=0.0), power.SEQLEN, range(20))
    )


def test_one_cluster_resolves_nothing() -> None:
    assert power.resolution_of_windows(power.PRIORS["kl"], 1024, [0] * 50) == math.inf


def test_shorter_windows_spread_more_and_longer_ones_are_not_trusted_to_spread_less() -> None:
    prior = power.Prior(0.1)
    assert prior.of(256) == pytest.approx(0.2)
    assert prior.of(1024) == prior.of(4096) == 0.1


@pytest.mark.parametrize("wanted", [0.05, 0.07, 0.1])
def test_the_windows_chosen_resolve_and_a_twentieth_fewer_do_not(wanted: float) -> None:
    prior = power.PRIORS["perplexity"]
    number = power.windows_for(wanted, prior, 1024, 1000)
    assert number is not None

    def resolved(windows: int) -> float:
        return power.resolution_of_windows(prior, 1024, clusters.blocks(windows))

    assert resolved(number) <= wanted
    assert number == power.LEAST_WINDOWS or resolved(number * 19 // 20) > wanted


def test_never_fewer_windows_than_make_clusters_and_none_where_a_text_is_too_short() -> None:
    prior = power.PRIORS["kl"]
    assert power.windows_for(10.0, prior, 1024, 292) == power.LEAST_WINDOWS
    assert power.windows_for(0.001, prior, 1024, 292) is None
    assert power.windows_for(10.0, prior, 1024, 0) is None


@pytest.mark.parametrize("wanted", [0.06, 0.12])
def test_windows_that_are_chosen_show_the_wanted_difference_four_times_of_five(
    wanted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "DRAWS", 1000)
    rng, prior = np.random.default_rng(SEED), power.PRIORS["perplexity"]
    number = power.windows_for(wanted, prior, 1024, 1000)
    assert number is not None
    alike = np.asarray(clusters.blocks(number))
    shown = 0
    for _ in range(200):
        common = rng.normal(size=alike.max() + 1)[alike] * math.sqrt(prior.alike)
        own = rng.normal(size=number) * math.sqrt(1 - prior.alike)
        losses = wanted + prior.deviation * (common + own)
        found = paired.compare([losses], [np.zeros(number)], clusters=alike.tolist())
        shown += found.p_value < paired.ALPHA
    assert 0.7 <= shown / 200 <= 0.9
