from typing import Any

import pytest

from trinity.harness.records import compare
from trinity.harness.records.measurement import Interval, Measurement

PPL = {"corpus": "wikitext2", "seqlen": 1024, "tokens": 9000, "sha256": "a"}


def measured(**changes: Any) -> Measurement:
    data: dict[str, Any] = {
        "name": "wikitext2",
        "metric": "perplexity",
        "value": 20.0,
        "unit": "1",
        "higher_is_better": False,
        "path": "reference",
        "engine": "torch",
        "samples": [2.9, 3.0, 3.1, 2.8, 3.2, 3.0, 2.7, 3.3],
        "details": PPL,
    }
    return Measurement(**{**data, **changes})


def speedup(samples: list[float], floor: float = 0.01, **details: Any) -> Measurement:
    return measured(
        name="decode",
        metric="speedup",
        value=sorted(samples)[len(samples) // 2],
        higher_is_better=True,
        samples=samples,
        details={"noise_floor": floor, "cpu": "box", **details},
    )


def only(ours: Measurement, baseline: Measurement) -> compare.Outcome:
    (found,) = compare.judge(compare.pairs([ours], [baseline]))
    return found


def test_perplexity_is_compared_as_a_ratio() -> None:
    ours = measured(samples=[x + 0.1 for x in measured().samples])
    found = only(ours, measured())
    assert found.kind == "ratio"
    assert found.effect == pytest.approx(1.10517, rel=1e-5)
    assert found.verdict == "worse"
    assert found.interval is not None
    assert found.interval.low == pytest.approx(found.effect)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seqlen": 2048}, "other seqlen"),
        ({"tokens": 8000}, "other tokenizer"),
        ({"sha256": "b"}, "other text"),
        ({"task_version": 2.0}, "other task version"),
        ({"seqlen": 2048, "corpus": "c4"}, "other text, seqlen"),
    ],
)
def test_what_is_not_comparable_says_which(changes: dict[str, Any], reason: str) -> None:
    found = only(measured(details=PPL | changes), measured())
    assert (found.verdict, found.reason) == ("not comparable", reason)


def test_a_measurement_that_the_baseline_lacks_is_named() -> None:
    found = only(measured(name="c4"), measured())
    assert found.verdict == "not comparable"
    assert "no such measurement" in found.reason


def test_the_correction_is_over_all_that_is_compared_together() -> None:
    noise = (0.3, -0.02, 0.1, 0.25, 0.01, 0.2, 0.05, 0.15)
    worse = measured(samples=[x + y for x, y in zip(measured().samples, noise, strict=True)])
    alone = compare.judge(compare.pairs([worse], [measured()]))
    many = compare.judge(compare.pairs([worse] * 10, [measured()]))
    assert alone[0].p_adjusted == alone[0].p_value == many[0].p_value
    assert many[0].p_adjusted == pytest.approx(10 * (alone[0].p_value or 0))
    assert (alone[0].verdict, many[0].verdict) == ("worse", "no difference shown")


def test_accuracy_in_the_compiled_module_is_compared_with_that_in_torch() -> None:
    assert only(measured(engine="iree"), measured()).verdict == "no difference shown"


def test_times_of_different_processes_are_not_compared() -> None:
    one = measured(name="decode", metric="tokens_per_s", details={})
    found = only(one, one)
    assert (found.verdict, found.reason) == ("not comparable", "timed in different processes")


def test_sizes_are_counted_and_need_no_test() -> None:
    size = measured(name="stored", metric="stored_bytes", value=90.0, samples=[], details={})
    found = only(size, size.model_copy(update={"value": 100.0}))
    assert (found.verdict, found.effect) == ("better", 0.9)
    assert only(size, size).verdict == "equal"


def test_speed_ups_over_one_baseline_are_compared_beyond_both_noise_floors() -> None:
    fast, slow = [2.0, 2.01, 2.02, 2.0, 1.99], [1.8, 1.81, 1.82, 1.79, 1.8]
    assert only(speedup(fast), speedup(slow)).verdict == "faster"
    assert only(speedup(slow), speedup(fast)).verdict == "slower"
    assert only(speedup(fast, 0.06), speedup(slow, 0.06)).verdict == "no difference shown"


def test_speed_ups_on_other_machines_are_not_comparable() -> None:
    found = only(speedup([2.0] * 5), speedup([2.0] * 5, cpu="other"))
    assert found.reason == "other machine"


@pytest.mark.parametrize(
    ("low", "high", "floor", "word"),
    [
        (1.05, 1.10, 0.02, "faster"),
        (1.01, 1.10, 0.02, "no difference shown"),
        (0.90, 0.95, 0.02, "slower"),
        (0.90, 0.99, 0.02, "no difference shown"),
        (0.99, 1.01, 0.00, "no difference shown"),
    ],
)
def test_the_word_for_speed_needs_the_interval_beyond_the_noise(
    low: float, high: float, floor: float, word: str
) -> None:
    assert compare.speed_verdict(Interval(low=low, high=high, method="x"), floor) == word


def test_no_interval_shows_no_difference() -> None:
    assert compare.speed_verdict(None, 0.0) == "no difference shown"
