from itertools import combinations
from statistics import median

import numpy as np
import pytest

from trinity.harness.statistics import steps


def noise(seed: int, n: int) -> np.ndarray:
    """A speed-up of 3 that differs by 3 % from run to run."""
    return 3 * np.exp(np.random.default_rng(seed).normal(0, 0.03, n))


def test_the_cut_is_the_best_of_all_cuts_into_as_many_pieces() -> None:
    for seed in range(20):
        values = noise(seed, 9).tolist()
        values[5:] = [x * 1.4 for x in values[5:]]
        starts = steps.pieces(values)

        def cost(cuts: tuple[int, ...], values: list[float] = values) -> float:
            ends = (*cuts[1:], len(values))
            parts = [values[a:b] for a, b in zip(cuts, ends, strict=True)]
            return sum(abs(x - median(part)) for part in parts for x in part)

        least = min(cost((0, *cuts)) for cuts in combinations(range(1, 9), len(starts) - 1))
        assert cost(tuple(starts)) == pytest.approx(least)


def test_noise_alone_steps_in_fewer_than_one_of_twenty_series() -> None:
    for n in (6, 8, 20, 60):
        assert sum(bool(steps.find(noise(seed, n).tolist())) for seed in range(100)) <= 5


def test_a_step_of_five_deviations_is_found_where_it_is() -> None:
    for seed in range(50):
        values = noise(seed, 30)
        values[12:] /= 1.15
        (step,) = steps.find(values.tolist())
        assert abs(step.index - 12) <= 1
        assert step.after / step.before == pytest.approx(1 / 1.15, rel=0.05)


def test_one_bad_run_is_no_new_level_of_those_around_it() -> None:
    values = noise(0, 20)
    values[10] /= 3
    for step in steps.find(values.tolist()):
        assert step.index in (10, 11)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [5.0] * 9, [0.0] * 9])
def test_few_or_equal_numbers_have_no_step(values: list[float]) -> None:
    assert steps.find(values) == []


def test_numbers_without_noise_step_where_they_change_but_not_by_rounding() -> None:
    assert [s.index for s in steps.find([28.5] * 4 + [30.0] * 2)] == [4]
    assert steps.find([28.5] * 4 + [28.5001] * 4) == []
    last = steps.find([28.5] * 5 + [30.0])
    assert [(s.index, s.length) for s in last] == [(5, 1)]
