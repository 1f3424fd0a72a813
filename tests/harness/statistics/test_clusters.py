"""Clusters of windows: where they end, what a test over them says, and how often it errs."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics import clusters, comparison, paired
from trinity.harness.statistics.clusters import Clustered

SEED = 20260102
TRIALS = 500
Draw = Callable[[np.random.Generator, int], np.ndarray]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer resamples: hundreds of trials in a second or two."""
    monkeypatch.setattr(paired, "DRAWS", 1000)


def autocorrelated(rho: float) -> Draw:
    """Differences of windows in order; each is like the one before it."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        found = rng.normal(size=n)
        for k in range(1, n):
            found[k] = rho * found[k - 1] + math.sqrt(1 - rho**2) * found[k]
        return found

    return draw


def of_documents(lengths: list[int], share: float) -> Draw:
    """Differences of windows of documents, which have this share of their variance in common."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        document = np.repeat(np.arange(len(lengths)), lengths)[:n]
        common = rng.normal(size=len(lengths))[document]
        return math.sqrt(share) * common + math.sqrt(1 - share) * rng.normal(size=n)

    return draw


def false_positives(draw: Draw, alike: list[int]) -> tuple[int, int]:
    """How many of TRIALS pairs without a difference the test calls different at 5%: the test over
    clusters, and the one over single windows.
    """
    rng, none = np.random.default_rng(SEED), np.zeros(len(alike))
    over_clusters = over_windows = 0
    for _ in range(TRIALS):
        sample = draw(rng, len(alike))
        over_clusters += paired.compare([sample], [none], clusters=alike).p_value < paired.ALPHA
        over_windows += paired.compare([sample], [none]).p_value < paired.ALPHA
    return over_clusters, over_windows


HIGHEST = stats.binom.ppf(0.999, TRIALS, 0.05)  # of a test that errs in 5%: 41 of 500


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("windows", [16, 40])
def test_independent_windows_err_as_often_as_the_test_says(windows: int) -> None:
    alike, _ = clusters.of_windows([1] * 16 * windows, 16, windows)
    over_clusters, _ = false_positives(autocorrelated(0.0), alike)
    assert 0 < over_clusters <= HIGHEST


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("windows", [16, 64])
def test_neighbours_that_are_alike_raise_the_error_rate_much_less_than_without_clusters(
    windows: int,
) -> None:
    alike, _ = clusters.of_windows([1] * 16 * windows, 16, windows)
    over_clusters, over_windows = false_positives(autocorrelated(0.3), alike)
    assert over_windows >= 0.11 * TRIALS
    assert over_clusters <= 0.10 * TRIALS
    assert over_clusters <= 0.7 * over_windows


@pytest.mark.usefixtures("quick")
def test_windows_of_documents_err_as_often_as_the_test_says() -> None:
    lengths = [5, 3, 6, 4, 2, 7, 4, 3, 5, 1, 6, 4]
    alike, by = clusters.of_windows((16 * length for length in lengths), 16, sum(lengths))
    over_clusters, over_windows = false_positives(of_documents(lengths, 0.3), alike)
    assert by.startswith("documents")
    assert over_clusters <= HIGHEST
    assert over_windows >= 0.15 * TRIALS


@pytest.mark.usefixtures("quick")
def test_sixteen_windows_find_a_difference_of_the_detectable_size_four_times_of_five() -> None:
    rng = np.random.default_rng(SEED)
    alike = [k // 2 for k in range(16)]
    least = float(stats.t.ppf([0.975, 0.8], 7).sum()) / math.sqrt(16)
    seen = [
        paired.compare([rng.normal(least, 1, 16)], [np.zeros(16)], clusters=alike)
        for _ in range(300)
    ]
    assert 0.70 <= np.mean([found.p_value < paired.ALPHA for found in seen]) <= 0.90
    printed = [found.detectable() for found in seen]
    # Resamples of eight clusters reach a little further than Student's t.
    assert np.mean([p for p in printed if p is not None]) == pytest.approx(least, rel=0.1)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 9, 0.05 / 60])
def test_what_was_not_shown_is_less_than_what_could_have_been(alpha: float) -> None:
    rng = np.random.default_rng(SEED)
    alike, unshown = [k // 2 for k in range(16)], 0
    for true in np.linspace(0, 6, 40):
        found = paired.compare([rng.normal(true, 1, 16)], [np.zeros(16)], clusters=alike)
        least = found.detectable(alpha)
        if found.p_value >= alpha:
            unshown += 1
            assert least is None or least > abs(found.difference)
    assert unshown >= 3


def test_sixteen_windows_survive_the_correction_of_a_large_table() -> None:
    rng = np.random.default_rng(SEED)
    alike = [k // 2 for k in range(16)]
    found = paired.compare([rng.normal(50, 1, 16)], [np.zeros(16)], clusters=alike)
    assert found.p_value < 0.05 / 500
    assert found.detectable(0.05 / 500) is not None


def test_clusters_of_one_say_what_windows_say() -> None:
    differences = np.random.default_rng(SEED).normal(0.3, 1, 12)
    alone, none = paired.compare([differences], [np.zeros(12)]), np.zeros(12)
    found = paired.compare([differences], [none], clusters=range(12))
    assert (found.p_value, found.detectable()) == (
        alone.p_value,
        pytest.approx(alone.detectable()),
    )


def test_windows_weigh_the_same_in_clusters_of_any_size() -> None:
    differences = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    found = Clustered.of(differences, [0, 0, 0, 1, 2, 2, 3])
    assert found.mean == pytest.approx(4.0)
    # By hand: sums of x - 4 are -6, 0, 3, 3; 54 of squares, times 4 / 3, over 7 windows.
    assert found.error == pytest.approx(math.sqrt(54 * 4 / 3) / 7)


def test_clusters_of_one_size_have_the_error_of_the_mean_of_their_means() -> None:
    differences = np.random.default_rng(SEED).normal(size=24)
    means = differences.reshape(8, 3).mean(axis=1)
    found = Clustered.of(differences, [k // 3 for k in range(24)])
    assert found.error == pytest.approx(means.std(ddof=1) / math.sqrt(8))


def test_one_cluster_that_outweighs_the_others_shows_nothing() -> None:
    alike = [*range(8), *[8] * 8]
    found = paired.compare([np.arange(1.0, 17)], [np.zeros(16)], clusters=alike)
    assert (found.p_value, found.interval, found.detectable()) == (1.0, None, None)
    assert found.test == "none: too few and too unequal clusters (9)"


def test_all_windows_alike_show_nothing() -> None:
    found = paired.compare([[3.0, 3.1, 3.2]], [[1.0, 1.0, 1.0]], clusters=[0, 0, 0])
    assert (found.p_value, found.detectable()) == (1.0, None)


def test_a_cluster_holds_whole_documents() -> None:
    # Documents of 30, 20, 10, 30, 20, 30 and 40 tokens, in windows of ten.
    found, by = clusters.of_windows([30, 20, 10, 30, 20, 30, 40], 10, 18)
    assert found == [0] * 3 + [1] * 2 + [2] * 4 + [3] * 2 + [4] * 3 + [5] * 4
    assert by == "documents, at least 2 windows"


def test_fewer_than_five_documents_give_way_to_blocks() -> None:
    found, by = clusters.of_windows([1000, 600], 100, 16)
    assert found == [k // 2 for k in range(16)]
    assert by == "blocks, at least 2 windows"


@pytest.mark.parametrize("windows", [1, 2, 4, 15, 16, 17, 40, 200])
@pytest.mark.parametrize("length", [3, 70, 10_000])
def test_clusters_are_runs_in_order_that_are_long_enough(windows: int, length: int) -> None:
    found, _ = clusters.of_windows([length] * (windows * 16 // length + 1), 16, windows)
    assert len(found) == windows
    assert sorted(found) == found
    assert set(found) == set(range(found[-1] + 1))
    assert min(np.bincount(found)) >= max(1, math.isqrt(windows) // 2)


def losses(samples: list[float], **details: object) -> Measurement:
    return Measurement(
        name="text",
        metric="perplexity",
        value=math.exp(sum(samples) / len(samples)),
        unit="1",
        higher_is_better=False,
        path="reference",
        engine="torch",
        samples=samples,
        details=details,
    )


def test_records_that_name_clusters_are_compared_over_them_and_older_ones_are_not() -> None:
    rng = np.random.default_rng(SEED)
    ours, baseline = rng.normal(3, 0.1, (2, 16)).tolist()
    alike = [k // 2 for k in range(16)]

    def test_of(**details: object) -> str:
        pairs = comparison.pairs([losses(ours, **details)], [losses(baseline)])
        return comparison.judge(pairs)[0].test

    assert "over 8 clusters of 16 windows" in test_of(clusters=alike)
    assert "clusters" not in test_of()
