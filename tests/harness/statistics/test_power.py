"""Sizes chosen by a power calculation: by hand, and by simulated comparisons."""

import math

import numpy as np
import pytest
from scipy import stats

from trinity.harness.statistics import paired, power

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
