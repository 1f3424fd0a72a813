import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.harness.records.test_record import make_record
from trinity.harness import cli
from trinity.harness.records import record
from trinity.harness.records.measurement import Interval, Measurement
from trinity.harness.report.compared import grid as compared_grid
from trinity.harness.statistics import comparison
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.harness.tracking import comparing
from trinity.harness.tracking.comparing import Margins
from trinity.methods.errors import ConfigError, NothingJudgedError

NOTHING = comparing.Evaluation((), {}, "torch", "llvm-cpu")


def perplexity(shift: float) -> Measurement:
    samples = [2.9, 3.0, 3.1, 2.8, 3.2, 3.0, 2.7, 3.3]
    return Measurement(
        name="wikitext2",
        metric="perplexity",
        value=20.0 + shift,
        unit="1",
        higher_is_better=False,
        path="reference",
        engine="torch",
        samples=[x + shift * (1 + 0.1 * n) for n, x in enumerate(samples)],
    )


@pytest.fixture
def records(tmp_path: Path) -> tuple[str, str]:
    """(worse, baseline): the first written after the second, of the same recipe."""
    good = record.write(make_record(measurements=[perplexity(0.0)]), tmp_path)
    bad = record.write(make_record(measurements=[perplexity(0.1)], date="2026-01-03"), tmp_path)
    return str(bad), str(good)


def compared(ours: str, baseline: str, tmp_path: Path) -> list[comparison.Outcome]:
    store = StageStore(tmp_path / "cache")
    return comparing.compare_two(ours, baseline, NOTHING, store, Reporter(quiet=True))


def command(*words: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["trinity", *words, "--quiet"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_records_are_compared_on_their_samples_and_sizes(
    records: tuple[str, str], tmp_path: Path
) -> None:
    found = {o.metric: o for o in compared(*records, tmp_path)}
    assert found["perplexity"].verdict == "worse"
    assert found["bits_per_weight"].verdict == "equal"
    row = list(compared_grid([found["perplexity"]]).rows[0])
    assert row[-2:] == ["worse", "p < 0.001 after Holm over 1, 8 pairs"]


def test_a_record_and_a_model_are_not_compared(records: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one is a record and the other a model"):
        compared(records[0], "random:tiny-llama", tmp_path)


def test_models_without_a_suite_are_told_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--suite"):
        compared("random:tiny-llama", "random:tiny-llama", tmp_path)


def outcome(**changes: Any) -> comparison.Outcome:
    data: dict[str, Any] = {
        "name": "piqa",
        "metric": "acc",
        "engine": "torch",
        "verdict": "worse",
        "kind": "difference",
        "effect": -0.04,
        "interval": Interval(low=-0.06, high=-0.02, method="x"),
    }
    return comparison.Outcome(**{**data, **changes})


@pytest.mark.parametrize(
    ("changes", "margins", "fails"),
    [
        ({}, {}, True),
        ({}, {"accuracy": 0.019}, True),
        ({}, {"accuracy": 0.021}, False),
        ({"verdict": "no difference shown"}, {}, False),
        ({"verdict": "better", "effect": 0.04}, {}, False),
        (
            {
                "metric": "perplexity",
                "kind": "ratio",
                "effect": 1.05,
                "interval": Interval(low=1.03, high=1.07, method="x"),
            },
            {"perplexity": 0.02},
            True,
        ),
        (
            {
                "metric": "speedup",
                "verdict": "slower",
                "kind": "ratio",
                "effect": 0.9,
                "interval": Interval(low=0.88, high=0.93, method="x"),
            },
            {"speed": 0.08},
            False,
        ),
        (
            {"metric": "stored_bytes", "kind": "ratio", "effect": 1.1, "interval": None},
            {"size": 0.05},
            True,
        ),
    ],
)
def test_a_gate_fails_on_what_is_significant_and_wholly_beyond_the_margin(
    changes: dict[str, Any], margins: dict[str, float], fails: bool
) -> None:
    assert bool(comparing.gate([outcome(**changes)], Margins(**margins))) is fails


def test_a_gate_ends_with_one_where_something_got_worse_and_zero_otherwise(
    records: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = records
    assert command("gate", "--baseline", good, bad, monkeypatch=monkeypatch) == 1
    assert "FAILED wikitext2 perplexity" in capsys.readouterr().out
    allowed = ("gate", "--baseline", good, bad, "--margin-perplexity", "0.5")
    assert command(*allowed, monkeypatch=monkeypatch) == 0
    assert command("gate", "--baseline", bad, good, monkeypatch=monkeypatch) == 0


def test_without_a_second_record_the_newest_of_the_same_recipe_is_judged(
    records: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = records
    assert comparing.newest_like(good, tmp_path) == bad
    with pytest.raises(ConfigError, match="from 2026-01-03 or later"):
        comparing.newest_like(bad, tmp_path)  # an older record is not what was made since
    words = ("gate", "--baseline", good, "--out", str(tmp_path))
    assert command(*words, monkeypatch=monkeypatch) == 1
    Path(bad).unlink()
    with pytest.raises(ConfigError, match="holds no other record of recipe 'dense'"):
        comparing.newest_like(good, tmp_path)


def test_two_models_are_measured_and_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("compare", "random:tiny-llama", "random:tiny-llama", "--suite", "perplexity-pydoc")
    sizes = ("--windows", "3", "--seqlen", "32")
    assert command(*words, *sizes, monkeypatch=monkeypatch) == 0
    assert "no difference shown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("samples", "reason", "why"),
    [
        ([800.0 + n for n in range(8)], "exp(803.5), more", "worse by more than a number can say"),
        ([], "infinite: why", r"has no value \(infinite: why\)"),
    ],
)
def test_a_gate_fails_where_perplexity_became_no_number(
    samples: list[float], reason: str, why: str
) -> None:
    lost = perplexity(0.0).model_copy(update={"value": None, "reason": reason, "samples": samples})
    outcomes = comparison.judge(comparison.pairs([lost], [perplexity(0.0)]))
    ((_, said),) = comparing.gate(outcomes, Margins(perplexity=5.0))
    assert re.fullmatch(why, said)
    assert compared_grid(outcomes).rows


def test_a_gate_fails_where_a_record_holds_nan() -> None:
    """Records of other versions and programs may."""
    good, broken = perplexity(0.0), perplexity(float("nan"))
    outcomes = comparison.judge(comparison.pairs([broken], [good]))
    ((_, why),) = comparing.gate(outcomes, Margins())
    assert "NaN" in why


def test_a_gate_that_compares_nothing_does_not_pass() -> None:
    other = perplexity(0.0).model_copy(update={"details": {"seqlen": 2048}})
    outcomes = comparison.judge(comparison.pairs([perplexity(0.0)], [other]))
    with pytest.raises(NothingJudgedError, match=r"nothing could be compared \(.*other seqlen"):
        comparing.gate(outcomes, Margins())


def test_a_gate_fails_where_ours_lacks_what_the_baseline_has(tmp_path: Path) -> None:
    both = [perplexity(0.0), perplexity(0.0).model_copy(update={"name": "c4"})]
    good = record.write(make_record(measurements=both), tmp_path)
    less = record.write(make_record(measurements=both[:1], date="2026-01-03"), tmp_path)
    outcomes = compared(str(less), str(good), tmp_path)
    ((lost, why),) = comparing.gate(outcomes, Margins())
    assert (lost.name, why) == ("c4", "has no value (only the baseline has such a measurement)")
    assert not comparing.gate(compared(str(good), str(less), tmp_path), Margins())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"suites": ("perplexity-pydoc",)}, "--suite is for models"),
        ({"sizes": {"limit": 3}}, "--limit is for"),
        ({"engine": "iree", "target": "cuda", "dense": "x"}, "--engine, --target, --dense is for"),
    ],
)
def test_what_is_for_models_is_refused_for_records(
    records: tuple[str, str],
    tmp_path: Path,
    asked: dict[str, Any],
    said: str,
) -> None:
    how = replace(NOTHING, **asked)
    with pytest.raises(ConfigError, match=said):
        comparing.compare_two(*records, how, StageStore(tmp_path / "c"), Reporter(quiet=True))


def test_what_only_the_baseline_has_is_shown(records: tuple[str, str]) -> None:
    rows = compared_grid(comparison.lacking([], [perplexity(0.0)])).rows
    assert any("only the baseline" in str(cell) for row in rows for cell in row)
