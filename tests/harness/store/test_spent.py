import contextlib
from pathlib import Path

import pytest

from trinity.harness.store import spent
from trinity.harness.store.spent import Seconds, Spent, since, together
from trinity.harness.store.stages import StageStore


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds on a clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(spent.Seconds, "now", lambda: Seconds(now[0], 2 * now[0]))
    return now


def test_a_stage_within_another_counts_where_it_belongs(clock: list[float]) -> None:
    found = Spent()
    with found.making("bench"):
        clock[0] += 1
        with found.making("module"):
            clock[0] += 10
            with found.making("exported"):
                clock[0] += 100
        clock[0] += 1
    assert found.parts() == {
        "bench": Seconds(2, 4),
        "lower": Seconds(110, 220),
        "other": Seconds(0, 0),
    }


def test_all_seconds_are_of_some_part_also_those_that_made_no_stage(clock: list[float]) -> None:
    found = Spent()
    clock[0] += 3
    with contextlib.suppress(RuntimeError), found.making("suite"):
        clock[0] += 5
        raise RuntimeError  # a stage that fails took time too
    before = found.parts()
    with found.making("of a plugin"):
        clock[0] += 7
    assert before == {"evaluate": Seconds(5, 10), "other": Seconds(3, 6)}
    assert since(before, found.parts()) == {"evaluate": Seconds(), "other": Seconds(7, 14)}


def test_a_store_counts_what_it_makes_and_not_what_it_has(
    tmp_path: Path, clock: list[float]
) -> None:
    def write(folder: Path) -> None:
        clock[0] += 4
        (folder / "file").write_text("")

    store = StageStore(tmp_path)
    for _ in range(2):
        store.fill("suite", {}, write)
    assert store.spent.parts()["evaluate"] == Seconds(4, 8)


def test_the_sum_of_several_has_every_part() -> None:
    one = {"compress": Seconds(1.0, 2.0)}
    two = {"compress": Seconds(3.0, 4.0), "lower": Seconds(5.0)}
    assert together(one, {}, two) == {"compress": Seconds(4.0, 6.0), "lower": Seconds(5.0)}
    assert together() == {}
