import time
from collections.abc import Callable
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest

from tests.faults import processes
from tests.harness.sweeps import doing
from trinity.harness.recipes import recipe
from trinity.harness.sweeps import local_pool
from trinity.harness.sweeps.local_pool import LocalPool
from trinity.harness.sweeps.schedule import Needs
from trinity.harness.sweeps.worker import Outcome, Work

GB = 10**9


@pytest.fixture(autouse=True)
def _processes_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_pool, "_context", processes.context)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    named = recipe.parse({"name": "a", "model": {"id": "m"}}, "test")
    return Work("compress", named, tmp_path, tmp_path / "store", tmp_path / "out")


def test_as_many_parts_run_as_there_are_slots(work: Work) -> None:
    with LocalPool(2, GB, do=doing.meet) as pool:
        assert pool.has_room
        futures = [pool.start(work, Needs(0)) for _ in range(2)]
        assert not pool.has_room
        assert all(future and future.result(60) for future in futures)
        assert pool.has_room


def test_parts_that_memory_does_not_hold_together_run_one_after_the_other(work: Work) -> None:
    with LocalPool(2, GB, do=doing.note) as pool:
        first = pool.start(work, Needs(GB // 2))
        assert first
        assert pool.start(work, Needs(GB // 2 + 1)) is None
        small = pool.start(work, Needs(GB // 4))
        assert small
        wait([first, small])
        larger_than_all = pool.start(work, Needs(2 * GB))
        assert larger_than_all
        assert larger_than_all.result(60).place == "0"


def test_what_runs_alone_waits_and_has_nothing_beside_it(work: Work) -> None:
    with LocalPool(2, GB, do=doing.note) as pool:
        first = pool.start(work, Needs(0))
        assert first
        assert pool.start(work, Needs(0, is_alone=True)) is None
        first.result(60)
        alone = pool.start(work, Needs(0, is_alone=True))
        assert alone
        assert not pool.has_room
        assert alone.result(60).place == "0"


def test_a_process_that_is_killed_costs_its_own_part_only(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalPool(2, GB, do=doing.note) as pool:
        beside = pool.start(work, Needs(0))
        monkeypatch.setattr(pool, "do", doing.die)
        killed = pool.start(work, Needs(0))
        assert beside
        assert killed
        error = killed.exception(60)
        assert isinstance(error, BrokenProcessPool)
        assert "memory is short" in (pool.failure(error) or "")
        assert beside.result(60).place
        monkeypatch.setattr(pool, "do", doing.note)
        again = [pool.start(work, Needs(0)) for _ in range(2)]
        assert all(future and future.result(60).place for future in again)


def test_an_error_of_a_part_is_none_of_the_pools() -> None:
    assert LocalPool(1, GB).failure(ValueError("x")) is None


@pytest.mark.parametrize("do", [doing.hang, doing.hang_and_listen_to_nobody])
def test_nothing_runs_after_the_pool_is_left(
    work: Work, do: Callable[[Work], Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_pool, "PATIENCE_S", 0.2)
    with LocalPool(1, GB, do=do) as pool:
        assert pool.start(work, Needs(0))
        process = _wait_for_begin(work.folder)
    _wait_for_end(process)


def _hold(work: Work) -> None:
    local_pool._context = processes.context  # type: ignore[assignment]  # this process ends
    with LocalPool(1, GB, do=doing.hang) as pool:
        future = pool.start(work, Needs(0))
        assert future
        future.result()


def test_nothing_runs_after_who_started_it_is_killed(work: Work, tmp_path: Path) -> None:
    with processes.started(tmp_path / "said.txt", _hold, work) as driver:
        process = _wait_for_begin(work.folder)
        driver.kill()
        driver.join()
        _wait_for_end(process)


def _wait_for_end(process: int) -> None:
    until = time.monotonic() + 20
    while psutil.pid_exists(process) and psutil.Process(process).status() != "zombie":
        assert time.monotonic() < until
        time.sleep(0.01)


def _wait_for_begin(folder: Path) -> int:
    until = time.monotonic() + 60
    while not (folder / "begun").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    return int((folder / "begun").read_text(encoding="utf-8"))
