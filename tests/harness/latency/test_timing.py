import gc
import itertools
import time

import pytest

from tests.harness.tiny import BigramEngine
from trinity.harness.latency import timing
from trinity.methods.errors import ConfigError


def test_repetitions_alternate_after_each_has_warmed_up() -> None:
    order: list[str] = []
    calls = [lambda name=name: order.append(name) for name in "ab"]
    timing.interleaved(calls, warmup=2, repeats=3)
    assert "".join(order) == "aabb" + "ababab"


def test_results_of_the_warm_up_are_not_kept() -> None:
    numbers = itertools.count()
    (kept,) = timing.interleaved([lambda: next(numbers)], warmup=2, repeats=3)
    assert kept == [2, 3, 4]


def test_the_garbage_collector_rests_and_comes_back_even_after_an_error() -> None:
    seen: list[bool] = []
    timing.interleaved([lambda: seen.append(gc.isenabled())], warmup=0, repeats=1)
    with pytest.raises(ZeroDivisionError):
        timing.interleaved([lambda: 1 / 0], warmup=0, repeats=1)
    assert seen == [False]
    assert gc.isenabled()


def test_a_timing_is_the_difference_of_two_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    found = timing.timed(lambda: "done")
    assert (found.seconds, found.result) == (2.5, "done")


def test_no_repetitions_are_refused() -> None:
    with pytest.raises(ConfigError, match="repeats at least 1, found 1 and 0"):
        timing.interleaved([], warmup=1, repeats=0)


def measured(samples: list[float], name: str = "decode") -> timing.Measurement:
    return timing.measurement(
        BigramEngine(), name, "tpot_s", "s", samples, higher_is_better=False, details={}
    )


def test_a_measurement_is_the_median_with_its_quartiles_and_all_samples() -> None:
    found = measured([5.0, 1.0, 4.0, 2.0, 3.0])
    assert found.value == 3.0
    assert (found.details["quartile_1"], found.details["quartile_3"]) == (2.0, 4.0)
    assert found.samples == [5.0, 1.0, 4.0, 2.0, 3.0]
    assert found.interval is not None
    assert found.interval.low <= 3.0 <= found.interval.high


def test_a_ratio_pairs_the_samples() -> None:
    baseline = [1.0, 5.0, 2.0, 9.0, 3.0]
    found = timing.ratio(measured([2 * x for x in baseline]), measured(baseline))
    assert found.value == 2.0
    assert found.samples == [2.0] * 5
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (2.0, 2.0)


def test_a_ratio_of_different_things_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"decode .* and prefill .* are no pair"):
        timing.ratio(measured([1.0]), measured([1.0], name="prefill"))
