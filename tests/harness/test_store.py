import json
import logging
import os
from pathlib import Path

import pytest

from trinity.harness.store import StageStore, make_folder, write_json


def _write(text: str = "content") -> object:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "file.txt").write_text(text)

    return write


def test_a_stage_is_made_once_for_equal_inputs(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    calls: list[int] = []

    def write(folder: Path) -> None:
        calls.append(1)
        (folder / "file").write_text("x")

    first = store.fetch("kind", {"a": 1, "b": [2]}, write)
    second = StageStore(tmp_path).fetch("kind", {"b": [2], "a": 1}, write)
    assert first == second
    assert len(calls) == 1


@pytest.mark.parametrize("inputs", [{"a": 2}, {"a": "1"}, {"a": 1, "b": None}])
def test_different_inputs_make_different_stages(tmp_path: Path, inputs: dict[str, object]) -> None:
    store = StageStore(tmp_path)
    assert store.place("kind", {"a": 1}) != store.place("kind", inputs)


def test_a_changed_byte_is_noticed_and_the_stage_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = StageStore(tmp_path)
    place = store.put("kind", {}, _write())
    (place / "sub" / "file.txt").write_text("c0ntent")
    with caplog.at_level(logging.WARNING):
        again = store.fetch("kind", {}, _write())
    assert (again / "sub" / "file.txt").read_text() == "content"
    assert "damaged" in caplog.text
    assert "sub/file.txt" in caplog.text


@pytest.mark.parametrize("victim", ["sub/file.txt", "stage.json"])
def test_a_missing_file_is_noticed(tmp_path: Path, victim: str) -> None:
    store = StageStore(tmp_path)
    place = store.put("kind", {}, _write())
    (place / victim).unlink()
    assert store.get("kind", {}) is None


def test_a_truncated_manifest_is_noticed(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    place = store.put("kind", {}, _write())
    manifest = place / "stage.json"
    manifest.write_text(manifest.read_text()[:20])
    assert store.get("kind", {}) is None


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = StageStore(tmp_path)

    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put("kind", {}, write)
    assert store.get("kind", {}) is None
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    dead, alive = tmp_path / "scratch" / "999999999-x", tmp_path / "scratch" / f"{os.getpid()}-x"
    for leftover in (dead, alive):
        leftover.mkdir(parents=True)
    StageStore(tmp_path)
    assert not dead.exists()
    assert alive.exists()


def test_fresh_computes_again_once(tmp_path: Path) -> None:
    StageStore(tmp_path).put("kind", {}, _write("old"))
    store = StageStore(tmp_path, fresh=True)
    place = store.fetch("kind", {}, _write("new"))
    assert (place / "sub" / "file.txt").read_text() == "new"
    assert store.get("kind", {}) == place


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def half(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_folder(tmp_path / "out", half)
    assert list(tmp_path.iterdir()) == []
    make_folder(tmp_path / "out", lambda folder: folder.mkdir())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    write_json(path, {"b": 1, "a": "é"})
    assert path.read_text() == '{\n "a": "é",\n "b": 1\n}\n'
    assert json.loads(path.read_text()) == {"a": "é", "b": 1}
    assert list(tmp_path.iterdir()) == [path]
