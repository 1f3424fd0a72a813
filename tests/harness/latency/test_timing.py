import gc
import itertools
import math
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


def test_every_repetition_waits_for_the_threads_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: events.append(f"rest {seconds}"))
    timing.interleaved([lambda: events.append("call")], warmup=1, repeats=2)
    assert events == ["call", *["rest 0.02", "call"] * 2]


def test_calls_back_to_back_are_timed_after_as_many_untimed_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    lengths = iter([0.25, 0.25, 0.125, 0.125, 0.125, 0.125])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += next(lengths)

    assert timing.back_to_back(call, least_s=0.5) == 0.125


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


def baseline(first: list[float], second: list[float]) -> timing.Baseline:
    return timing.Baseline(BigramEngine(), "dense", tuple(first), tuple(second))


def test_a_speed_up_pairs_the_samples() -> None:
    slow = [1.0, 5.0, 2.0, 9.0, 3.0]
    found = timing.speedup(measured([x / 2 for x in slow]), baseline(slow, slow))
    assert found.value == 2.0
    assert found.samples == [2.0] * 5
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == (2.0, 2.0)
    assert found.details["verdict"] == "faster"


def test_the_noise_floor_is_what_one_thing_shows_against_itself() -> None:
    first = [1.0, 1.1, 0.9, 1.05, 0.95]
    noisy = baseline(first, [x * 1.2 for x in first])
    assert noisy.noise_floor == pytest.approx(math.log(1.2))
    assert baseline(first, first).noise_floor == 0.0


def test_a_speed_up_within_the_noise_is_no_difference() -> None:
    first = [1.0, 1.1, 0.9, 1.05, 0.95]
    ours = measured([x / 1.1 for x in first])
    assert timing.speedup(ours, baseline(first, first)).details["verdict"] == "faster"
    noisy = baseline(first, [x * 1.2 for x in first])
    assert timing.speedup(ours, noisy).details["verdict"] == "no difference shown"
    slower = measured([x * 1.3 for x in first])
    assert timing.speedup(slower, noisy).details["verdict"] == "slower"


def test_dequantized_weights_never_have_a_word_for_their_speed() -> None:
    ours = measured([0.5] * 5).model_copy(update={"path": "simulated"})
    found = timing.speedup(ours, baseline([1.0] * 5, [1.0] * 5))
    assert found.details["verdict"] == "not timed: dequantized weights"


def test_one_repetition_has_no_noise_floor_and_no_word() -> None:
    found = timing.speedup(measured([0.5]), baseline([1.0], [1.0]))
    assert found.details["verdict"] == "no noise floor"


def test_a_speed_up_of_different_lengths_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"are no pair"):
        timing.speedup(measured([1.0]), baseline([1.0, 2.0], [1.0, 2.0]))


def test_warming_up_ends_when_calls_get_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = iter([9.0, 5.0, 3.0, 2.9, 1.0])
    monkeypatch.setattr(timing, "timed", lambda call: timing.Timing(next(lengths), call()))
    assert timing.warm_up(lambda: None) == 4


def test_warming_up_ends_although_calls_keep_getting_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = (0.5**n for n in itertools.count())
    monkeypatch.setattr(timing, "timed", lambda call: timing.Timing(next(lengths), call()))
    assert timing.warm_up(lambda: None, most=6) == 6
