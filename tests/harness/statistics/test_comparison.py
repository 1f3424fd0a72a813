from typing import Any

import pytest

from trinity.harness.records.measurement import Interval, Measurement
from trinity.harness.statistics import comparison

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


def only(ours: Measurement, baseline: Measurement) -> comparison.Outcome:
    (found,) = comparison.judge(comparison.pairs([ours], [baseline]))
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


def test_divergences_from_two_dense_models_are_not_comparable() -> None:
    one, other = (measured(metric="kl", details={**PPL, "dense_model": name}) for name in "ab")
    assert only(one, other).reason == "other dense model"
    assert only(one, one).verdict == "no difference shown"
    assert only(one, measured(metric="kl")).verdict == "no difference shown"  # an older record


def test_perplexities_beyond_a_float_are_compared_by_their_losses() -> None:
    lost = measured(value=None, reason="exp(812.0), more", samples=[810.0 + n for n in range(8)])
    found = only(lost, measured())
    assert (found.verdict, found.ours, found.effect, found.interval) == ("worse", None, None, None)
    assert only(measured(), lost).verdict == "better"
    near = measured(value=None, reason="exp(811.9), more", samples=[809.9 + n for n in range(8)])
    assert only(near, lost).effect == pytest.approx(0.904837, rel=1e-5)


def test_what_has_no_value_and_no_samples_is_not_comparable_for_its_reason() -> None:
    lost = measured(value=None, reason="infinite: why", samples=[])
    assert only(lost, measured()).reason == "infinite: why"
    assert only(measured(), lost).reason == "of the baseline, infinite: why"


def test_a_measurement_that_the_baseline_lacks_is_named() -> None:
    found = only(measured(name="c4"), measured())
    assert found.verdict == "not comparable"
    assert "no such measurement" in found.reason


def test_the_correction_is_over_all_that_is_compared_together() -> None:
    noise = (0.3, -0.02, 0.1, 0.25, 0.01, 0.2, 0.05, 0.15)
    worse = measured(samples=[x + y for x, y in zip(measured().samples, noise, strict=True)])
    alone = comparison.judge(comparison.pairs([worse], [measured()]))
    many = comparison.judge(comparison.pairs([worse] * 10, [measured()]))
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
    assert comparison.speed_verdict(Interval(low=low, high=high, method="x"), floor) == word


def test_no_interval_shows_no_difference() -> None:
    assert comparison.speed_verdict(None, 0.0) == "no difference shown"


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    "broken",
    [
        measured(value=NAN, samples=[NAN] * 8),
        measured(samples=[NAN, *measured().samples[1:]]),
        measured(samples=[INFINITE, *measured().samples[1:]]),
        measured(value=None, reason="infinite", samples=[INFINITE] * 8),
        measured(name="piqa", metric="acc", value=NAN, samples=[1.0, 0.0]),
        measured(metric="bits_per_weight", value=NAN, samples=[]),
        speedup([NAN, 2.0, 2.0]),
    ],
)
def test_nothing_is_said_of_what_is_not_a_number(broken: Measurement) -> None:
    """A resample of NaN is never as extreme as NaN: its p value would be the smallest there is."""
    whole = broken.model_copy(
        update={"value": 2.0, "samples": [1.0, 0.0, 1.0][: len(broken.samples)]}
    )
    for ours, baseline in ((broken, whole), (whole, broken), (broken, broken)):
        found = only(ours, baseline)
        assert found.verdict == "not comparable"
        assert "NaN or infinity" in found.reason


@pytest.mark.parametrize("samples", [[], [2.0]])
def test_a_speed_up_without_repetitions_is_not_comparable(samples: list[float]) -> None:
    few = speedup([2.0, 2.1]).model_copy(update={"samples": samples})
    for ours, baseline in ((few, speedup([2.0, 2.1, 2.2])), (speedup([2.0, 2.1, 2.2]), few)):
        assert only(ours, baseline).verdict == "not comparable"


@pytest.mark.parametrize("changes", [{"path": "simulated"}, {"details": {"noise_floor": None}}])
def test_a_speed_up_that_has_no_verdict_of_its_own_gets_none_here(changes: dict[str, Any]) -> None:
    slow, fast = speedup([1.0, 1.1, 1.2]), speedup([9.0, 9.1, 9.2])
    changed = fast.model_copy(
        update={**changes, "details": {**fast.details, **changes.get("details", {})}}
    )
    assert only(fast, slow).verdict == "faster"
    assert only(changed, slow).verdict == "not comparable"
    assert only(slow, changed).verdict == "not comparable"


def test_an_average_is_over_the_tasks_of_its_own_suite() -> None:
    def suite(name: str, right: float) -> list[Measurement]:
        tasks = [
            measured(
                name=task,
                metric="acc",
                higher_is_better=True,
                value=right,
                samples=[right] * 30,
                details={"suite": name},
            )
            for task in ("piqa", "rte")
        ]
        details = {"suite": name, "tasks": ["piqa", "rte"]}
        mean = tasks[0].model_copy(update={"name": "average", "details": details})
        return [*tasks, mean]

    ours = [*suite("one", 1.0), *suite("two", 1.0)]
    found = comparison.judge(comparison.pairs(ours, [*suite("one", 1.0), *suite("two", 0.0)]))
    means = [o for o in found if o.name == "average"]
    assert [(o.effect, o.verdict) for o in means] == [
        (0.0, "no difference shown"),
        (1.0, "better"),
    ]
