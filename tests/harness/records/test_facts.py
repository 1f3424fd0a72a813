"""Typed facts: what is written is read back, and a record's JSON is what it always was."""

from dataclasses import fields

import pytest

from trinity.harness.records.facts import Average, Facts, OfSuite, Questions, Speedup, Text
from trinity.harness.records.measurement import Measurement

GROUPS = Facts.__subclasses__()


def _names(group: type[Facts]) -> list[str]:
    return [each.name for each in fields(group)]


def _measured(**details: object) -> Measurement:
    return Measurement(
        name="piqa",
        metric="acc",
        value=0.5,
        unit="1",
        higher_is_better=True,
        path="reference",
        engine="torch",
        details=details,
    )


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_not_there_is_none(group: type[Facts]) -> None:
    assert group.of(_measured(other=3)) == group()


def test_what_is_written_is_read_back() -> None:
    asked = Questions(examples=3, task_version=1.0, pooled=False, answers=[0, 1, 1])
    assert Questions.of(asked.added_to(_measured())) == asked


def test_an_unknown_fact_is_left_out_unless_it_is_written_as_null() -> None:
    assert Text(corpus="pydoc").details() == {"corpus": "pydoc"}
    assert OfSuite().details() == {"suite": None}
    assert Speedup(verdict="faster").details() == {
        "verdict": "faster",
        "noise_floor": None,
        "noise_interval": None,
    }


def test_only_the_named_facts_are_written() -> None:
    assert Questions(examples=3).details("examples", "pooled") == {"examples": 3, "pooled": None}


def test_facts_are_added_beside_what_a_measurement_says() -> None:
    found = Average(tasks=["a"]).added_to(_measured(other=3))
    assert found.details == {"other": 3, "tasks": ["a"]}


def test_no_fact_has_two_homes() -> None:
    names = [name for group in GROUPS for name in _names(group)]
    assert sorted(set(names)) == sorted(names)
    assert all(group.may_be_null <= set(_names(group)) for group in GROUPS)
