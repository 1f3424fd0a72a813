from pathlib import Path

import pytest

from tests.harness.tiny import BigramEngine
from trinity.harness.latency import memory


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
    (found,) = memory.resident_peak_during(BigramEngine(), lambda: 3, scope="a test")
    assert found.value is None
    assert found.reason


def test_the_lifetime_peak_is_at_least_what_is_resident_now() -> None:
    assert memory.lifetime_peak_bytes() >= 0.95 * memory.resident_bytes()


def test_stored_bytes_are_the_callers_count() -> None:
    (found,) = memory.stored(1234, BigramEngine())
    assert (found.value, found.unit) == (1234, "bytes")
