import time
from pathlib import Path

import pytest

from tests.harness.tiny import BigramEngine
from trinity.harness.latency import memory, stopwatch


def test_the_peak_during_a_call_holds_what_the_call_held() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("missing: /proc/self/clear_refs, by which Linux resets a process's peak")
    before = memory.resident_bytes()
    _, peak = memory.peak_during(lambda: len(b"x" * 200_000_000))
    if peak is None:
        pytest.skip("missing: permission to reset this process's peak")
    assert peak > before + 150_000_000


def test_a_peak_that_cannot_be_reset_is_none_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_CLEAR", tmp_path / "no" / "such" / "file")
    result, peak = memory.peak_during(lambda: 3)
    assert (result, peak) == (3, None)
    found = memory.peak(BigramEngine(), 100, peak, "a test")
    assert found.value is None
    assert found.reason


def test_a_peak_tells_the_model_from_the_libraries() -> None:
    found = memory.peak(BigramEngine(), 100, 350, "a test")
    assert (found.value, found.details["model_bytes"]) == (350, 250)


def test_stored_bytes_are_the_callers_count_in_all_and_by_component() -> None:
    found = memory.stored({"linears": 1000, "rest": 234}, BigramEngine())
    assert {m.name: m.value for m in found} == {
        "stored": 1234,
        "stored-linears": 1000,
        "stored-rest": 234,
    }


def test_a_stopwatch_adds_up_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = stopwatch.Stopwatch()
    for name in ("solve", "statistics", "solve"):
        with watch.phase(name):
            pass
    taken = watch.take()
    assert {name: phase["seconds"] for name, phase in taken.items()} == {
        "solve": 5.0,
        "statistics": 2.0,
    }
    assert watch.take() == {}
