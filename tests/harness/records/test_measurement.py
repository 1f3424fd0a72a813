"""The spread over calibration seeds, and what is said where a seed has no value."""

import pytest

from tests.harness.statistics.test_comparison import measured
from trinity.harness.records.measurement import with_spread


def test_the_first_seed_carries_the_spread_over_all() -> None:
    found = with_spread([measured(value=value) for value in (20.0, 22.0, 24.0)])
    assert found.value == 20.0
    assert found.seeds is not None
    assert (found.seeds.mean, found.seeds.deviation) == (pytest.approx(22), pytest.approx(2))


def test_one_seed_is_no_spread() -> None:
    assert with_spread([measured()]).seeds is None


def test_a_seed_without_a_value_is_not_passed_over() -> None:
    lost = measured(value=None, reason="infinite: why")
    found = with_spread([measured(), lost, measured()])
    assert found.seeds is None
    assert found.details["seeds_missing"] == "no value of 1 of 3: infinite: why"
