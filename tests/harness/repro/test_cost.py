"""harness/repro/cost.py: what is said before hours are spent, meanwhile and after."""

import pytest

from trinity.harness.latency.ceilings import Ceilings
from trinity.harness.repro import cost
from trinity.harness.runs.estimate import Estimate
from trinity.harness.store.spent import Seconds

SECONDS = {"compress": 40.0, "lower": 20.0, "evaluate": 7000.0, "bench": 200.0}


def test_what_is_said_are_the_sums_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ceilings, "products", lambda *_: 1e11)
    monkeypatch.setattr(Ceilings, "read", 2e10)
    made = Estimate(SECONDS, 3_000_000_000, 2_500_000_000)
    works = [cost.Work("some/model", ("a", "b"), 251_000_000, (3.0, 4.0), made)] * 2
    line, _, total = cost.said(works, Ceilings(()))
    assert line.startswith("some/model: 0.25 GB to fetch; 2 rows: compress 40 s, lower 20 s")
    assert "evaluate 1.9 hours, bench 3 minutes" in line
    assert "0.50 GB of models" in total
    assert "4.0 hours, 6.0 GB of disk, 2.5 GB of memory" in total
    assert "at 100 GFLOP/s and 20 GB/s" in total


def test_what_a_table_does_without_is_not_said() -> None:
    made = Estimate(SECONDS | {"lower": 0.0, "bench": 0.0}, 3_000_000_000, 2_500_000_000)
    line, _ = cost.said([cost.Work("some/model", ("a",), 0, (3.0,), made)], None)
    assert line == "some/model: 1 row: compress 40 s, evaluate 1.9 hours"


def test_with_a_gpu_no_hours_are_told_from_the_processor() -> None:
    line, total = cost.said([cost.Work("some/model", ("a",) * 5, 251_000_000)], None)
    assert line == "some/model: 0.25 GB to fetch; 5 rows"
    assert "0.25 GB of models" in total
    assert not {"hours", "minute", "GFLOP/s"} & set(f"{line} {total}".split())


def test_the_time_left_follows_the_rows_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    left = cost.Left({"a": 10.0, "b": 20.0, "c": 30.0})
    assert left.seconds(["a", "b", "c"]) == 60
    for row, took in (("a", 30.0), ("b", 0.1)):  # the second came from the store
        left.begin()
        now[0] += took
        left.end(row)
    assert left.seconds(["c"]) == pytest.approx(90)
    assert cost.Left({}).seconds(["a"]) is None


def test_where_the_time_went_is_told_from_the_longest_part_on() -> None:
    first, *parts = cost.where_it_went({"lower": Seconds(25, 50), "evaluate": Seconds(75, 75)})
    assert first == "it took 2 minutes; on processors 2 minutes:"
    assert [line.split()[:4] for line in parts] == [
        ["evaluate", "75.0", "s", "75%"],
        ["lower", "25.0", "s", "25%"],
    ]
