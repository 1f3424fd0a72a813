import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trinity.harness.recipes.recipe import ModelSpec, Recipe
from trinity.harness.runs import attempts
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import RecordError

RECIPE = Recipe(name="r", model=ModelSpec(id="random:tiny-llama"))


def _compute(store: StageStore) -> None:
    store.fill("x", {"n": store.made}, lambda folder: (folder / "f").write_text("1", "utf-8"))


def test_a_run_leaves_what_it_cost(tmp_path: Path) -> None:
    store = StageStore(tmp_path / "store")
    with attempts.attempt(RECIPE, tmp_path / "results", store):
        _compute(store)
        until = os.times().user + 0.2  # the account has tenths, and the system counts in ticks
        while os.times().user < until:
            sum(range(10_000))
    (one,) = attempts.read_all(tmp_path / "results")
    assert (one.recipe, one.status, one.stages) == ("r", "finished", 1)
    assert one.cpu_s >= 0.2
    assert one.peak_memory_bytes > 2**20


def test_a_run_that_found_all_in_the_store_leaves_nothing(tmp_path: Path) -> None:
    with attempts.attempt(RECIPE, tmp_path, StageStore(tmp_path / "store")):
        pass
    assert attempts.read_all(tmp_path) == []
    assert not (tmp_path / attempts.FOLDER).exists()


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_run_that_ends_badly_is_counted_too(
    error: BaseException, status: str, tmp_path: Path
) -> None:
    store = StageStore(tmp_path / "store")

    def broken() -> None:
        with attempts.attempt(RECIPE, tmp_path, store):
            _compute(store)
            raise error

    with pytest.raises(type(error)):
        broken()
    (one,) = attempts.read_all(tmp_path)
    assert one.status == status
    assert one.reason == ("ValueError: no" if status == "failed" else "")


def test_a_run_is_not_lost_because_what_it_cost_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    store = StageStore(tmp_path / "store")
    with attempts.attempt(RECIPE, tmp_path / "results", store):
        _compute(store)
        monkeypatch.setattr(attempts, "write_text", full)
    assert "what this run cost is not kept" in caplog.text

    def broken() -> None:
        with attempts.attempt(RECIPE, tmp_path / "more", store):
            _compute(store)
            monkeypatch.setattr(attempts, "write_text", full)
            raise ValueError("its own error")

    monkeypatch.undo()
    with pytest.raises(ValueError, match="its own error"):
        broken()


def test_a_killed_run_has_left_its_last_state(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from tests.harness.runs.test_attempts import RECIPE, attempts, StageStore
attempts.EVERY_S = 0.05
with attempts.attempt(RECIPE, Path({str(tmp_path)!r}), StageStore(Path({str(tmp_path / "s")!r}))):
    print("here", flush=True)
    time.sleep(60)
"""
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=root
    ) as process:
        assert process.stdout
        assert process.stdout.readline()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            (one,) = attempts.read_all(tmp_path)
            if one.wall_s > 0:
                break
            time.sleep(0.05)
        process.kill()
    (one,) = attempts.read_all(tmp_path)
    assert one.status == "running"
    assert one.wall_s > 0


@pytest.mark.parametrize("text", ["{", "[" * 10_000], ids=["cut off", "too deep"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / attempts.FOLDER).mkdir()
    (tmp_path / attempts.FOLDER / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=r"a\.json: is no attempt"):
        attempts.read_all(tmp_path)
