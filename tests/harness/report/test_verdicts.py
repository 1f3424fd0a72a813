from typing import Any

import pytest

from trinity.harness.recipes import paper
from trinity.harness.recipes.paper import Protocol
from trinity.harness.records.measurement import Interval, Measurement
from trinity.harness.report import verdicts
from trinity.harness.report.numbers import without_value
from trinity.harness.statistics.comparison import Outcome

SLIM = paper.load("slim")
TABLE = SLIM.tables["table1"]
DENSE = TABLE.rows[0]


def average(low: float, high: float, **details: Any) -> Measurement:
    return Measurement(
        name="average",
        metric="acc",
        value=(low + high) / 2,
        unit="1",
        higher_is_better=True,
        path="simulated",
        engine="torch",
        interval=Interval(low=low, high=high, method="bootstrap"),
        samples=[0.0, 1.0],
        details={"tasks": list(TABLE.protocol.tasks), **details},
    )


@pytest.mark.parametrize(
    ("low", "high", "printed", "word"),
    [
        (0.45, 0.55, "51.15", "reproduced"),
        (0.45, 0.51, "51.15", "differs"),
        (0.45, 0.5112, "51.1", "reproduced"),
        (0.45, 0.5104, "51.1", "differs"),
    ],
)
def test_reproduced_is_within_the_interval_up_to_the_rounding_of_the_printed_value(
    low: float, high: float, printed: str, word: str
) -> None:
    assert verdicts.judge(average(low, high), printed, TABLE.protocol).word == word


def test_another_model_is_not_comparable() -> None:
    assert paper.printed(TABLE, DENSE, None, None) is not None
    record = type("R", (), {"model": type("M", (), {"id": "elsewhere/model"})})()
    found = verdicts.against_paper(
        average(0.4, 0.5), TABLE, DENSE, None, SLIM.profiles["paper"], record
    )
    assert found.text == "not comparable (other model)"
    assert found.value == 56.6  # of the reference model, to stand beside ours


def test_the_papers_model_is_compared_with_the_papers_number() -> None:
    record = type("R", (), {"model": type("M", (), {"id": "facebook/opt-125m"})})()
    found = verdicts.against_paper(
        average(0.34, 0.37), TABLE, DENSE, None, SLIM.profiles["paper"], record
    )
    assert (found.value, found.text) == (35.9, "reproduced")


@pytest.mark.parametrize(
    ("changes", "details", "reason"),
    [
        ({}, {"tasks": ["piqa"]}, "other tasks, 6 there"),
        ({"name": "piqa"}, {"examples": 100, "examples_available": 1838}, "number of examples"),
        (
            {"name": "piqa"},
            {"examples": 100, "examples_available": 100, "examples_published": 1838},
            "number of examples",
        ),
        (
            {},
            {"tasks": TABLE.protocol.tasks, "questions": 600, "questions_published": 21191},
            "number of examples",
        ),
        ({"name": "piqa"}, {"task_version": 2.0}, "other task version, 1.0 there"),
        ({"name": "p", "metric": "perplexity"}, {"seqlen": 4096}, "other seqlen, 2048 there"),
        (
            {"name": "p", "metric": "perplexity"},
            {"seqlen": 2048, "windows": 10, "windows_available": 141},
            "number of windows",
        ),
    ],
)
def test_another_protocol_is_not_comparable_and_says_which(
    changes: dict[str, Any], details: dict[str, Any], reason: str
) -> None:
    protocol = Protocol(seqlen=2048, tasks=TABLE.protocol.tasks, task_versions={"piqa": "1.0"})
    found = verdicts.judge(
        average(0.4, 0.5, **details).model_copy(update=changes), "45.0", protocol
    )
    assert found.word == "not comparable"
    assert reason in found.reason


def test_a_published_number_without_ours_is_not_measured() -> None:
    assert verdicts.judge(None, "51.15", TABLE.protocol).word == "not measured"


def test_perplexities_are_found_under_the_papers_name() -> None:
    assert paper.published(TABLE, DENSE, None, "OPT-125M", "perplexity-wikitext2") is None
    assert paper.published(TABLE, DENSE, None, "OPT-125M") == 35.9


def test_a_verdict_without_a_number_begins_with_its_word() -> None:
    outcome = Outcome(name="x", metric="nll", engine="torch", verdict="worse", kind="ratio")
    assert verdicts.outcome_text(outcome).startswith("worse (")


@pytest.mark.parametrize("metric", ["kl", "nll"])
def test_what_was_measured_and_is_infinite_is_no_dash(metric: str) -> None:
    said = {"infinite: in 2 of 3 windows": "infinite", "exp(812.3), too large": "exp(812.3)"}
    for reason, text in said.items():
        update = {"metric": metric, "value": None, "reason": reason}
        assert without_value(average(0, 1).model_copy(update=update)) == text
    update = {"metric": metric, "value": None, "reason": "no such data"}
    assert without_value(average(0, 1).model_copy(update=update)) == "–"
