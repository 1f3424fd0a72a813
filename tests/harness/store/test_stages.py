import errno
import json
import logging
import os
import pwd
import stat
import threading
from pathlib import Path

import pytest

from tests.harness import sharing
from trinity.harness.store import locks
from trinity.harness.store import stages as stages
from trinity.harness.store.stages import StageStore, default_root, read_json, write_json
from trinity.methods.errors import MachineError


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

    first = store.fill("kind", {"a": 1, "b": [2]}, write)
    second = StageStore(tmp_path).fill("kind", {"b": [2], "a": 1}, write)
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
    place = store.fill("kind", {}, _write())
    (place / "sub" / "file.txt").write_text("c0ntent")
    with caplog.at_level(logging.WARNING):
        again = store.fill("kind", {}, _write())
    assert (again / "sub" / "file.txt").read_text() == "content"
    assert "damaged" in caplog.text
    assert "sub/file.txt" in caplog.text


def test_a_stage_that_was_read_is_not_read_again_unless_it_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "SETTLED_NS", -1)
    store, read = StageStore(tmp_path), []
    monkeypatch.setattr(stages, "file_sha256", lambda path: read.append(path.name) or "hash")
    place = store.fill("kind", {}, _write())
    for _ in range(3):
        assert store.fill("kind", {}, _write("other")) == place
    assert read == ["file.txt"] * 2  # as it was made, and as it was first wanted
    (place / "sub" / "file.txt").write_text("content and more")
    monkeypatch.setattr(stages, "file_sha256", lambda _: "another hash")
    assert store.get("kind", {}) is None


@pytest.mark.parametrize("victim", ["sub/file.txt", "stage.json"])
def test_a_missing_file_is_noticed(tmp_path: Path, victim: str) -> None:
    store = StageStore(tmp_path)
    place = store.fill("kind", {}, _write())
    (place / victim).unlink()
    assert store.get("kind", {}) is None


def test_a_truncated_manifest_is_noticed(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    place = store.fill("kind", {}, _write())
    manifest = place / "stage.json"
    manifest.write_text(manifest.read_text()[:20])
    assert store.get("kind", {}) is None


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = StageStore(tmp_path)

    def write(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.fill("kind", {}, write)
    assert store.get("kind", {}) is None
    assert list((tmp_path / "scratch").iterdir()) == []
    assert list((tmp_path / "locks").iterdir()) == []


def test_fresh_computes_again_once(tmp_path: Path) -> None:
    StageStore(tmp_path).fill("kind", {}, _write("old"))
    store = StageStore(tmp_path, fresh=True)
    place = store.fill("kind", {}, _write("new"))
    assert (place / "sub" / "file.txt").read_text() == "new"
    assert store.get("kind", {}) == place


def test_two_processes_that_want_the_same_stages_make_each_once(tmp_path: Path) -> None:
    root, count = tmp_path / "store", 12
    with (
        sharing.process(sharing.fetch_all, root, tmp_path, "a", count) as first,
        sharing.process(sharing.fetch_all, root, tmp_path, "b", count) as second,
    ):
        for name in ("a", "b"):
            sharing.appears(tmp_path / f"{name}-ready")
        (tmp_path / "go").touch()
        for other in (first, second):
            other.join(60)
            assert other.exitcode == 0
    writers = [(tmp_path / f"written-{n}").read_text().split() for n in range(count)]
    assert [len(names) for names in writers] == [1] * count
    assert list((root / "scratch").iterdir()) == list((root / "locks").iterdir()) == []


def _waiting(
    store: StageStore, caplog: pytest.LogCaptureFixture
) -> tuple[threading.Thread, list[object]]:
    """A thread that fetches what another process is making, and what it will have read."""
    found: list[object] = []

    def fetch() -> None:
        place = store.fill("kind", {}, lambda f: (f / "file").write_text("ours") and None)
        found.append((place / "file").read_text())

    thread = threading.Thread(target=fetch, daemon=True)
    with caplog.at_level(logging.WARNING):
        thread.start()
        sharing.happens(lambda: "'kind' is being made by process" in caplog.text)
    assert thread.is_alive()
    return thread, found


@pytest.mark.parametrize("fresh", [False, True])
def test_the_second_waits_for_the_first_and_takes_what_it_made(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fresh: bool,
) -> None:
    monkeypatch.setattr(stages, "PATIENCE_S", 0.0)
    root = tmp_path / "store"
    store = StageStore(root, fresh=fresh)
    with sharing.process(sharing.fetch_slowly, root, tmp_path):
        sharing.appears(tmp_path / "started")
        thread, found = _waiting(store, caplog)
        (tmp_path / "go").touch()
        thread.join(60)
    assert found == ["from the other process"]


def test_whoever_waits_for_a_process_that_is_killed_makes_the_stage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "PATIENCE_S", 0.0)
    root = tmp_path / "store"
    store = StageStore(root)
    with sharing.process(sharing.fetch_slowly, root, tmp_path) as other:
        sharing.appears(tmp_path / "started")
        thread, found = _waiting(store, caplog)
        other.kill()
        thread.join(60)
    assert found == ["ours"]


def test_only_what_a_dead_process_left_is_swept(tmp_path: Path) -> None:
    """However it is called: in another container, a number says nothing of a process."""
    root = tmp_path / "store"
    with sharing.process(sharing.fetch_slowly, root, tmp_path) as other:
        sharing.appears(tmp_path / "started")
        (written,) = (root / "scratch").iterdir()
        StageStore(root)
        assert (written / "stage" / "file").is_file()
        other.kill()
        other.join()
        StageStore(root)
        assert not written.exists()


def test_the_lock_of_a_process_killed_after_its_stage_was_made_is_swept(tmp_path: Path) -> None:
    StageStore(tmp_path).fill("kind", {}, _write())
    left, held = tmp_path / "locks" / "left", tmp_path / "locks" / "held"
    left.touch()
    lock = locks.take(held)
    assert lock is not None
    StageStore(tmp_path)
    assert (left.exists(), held.exists()) == (False, True)
    lock.release()


def test_what_fresh_replaced_is_kept_while_a_process_is_there_that_may_read_it(
    tmp_path: Path,
) -> None:
    root = tmp_path / "store"
    StageStore(root).fill("kind", {}, _write("old"))
    with sharing.process(sharing.read_and_stay, root, tmp_path) as other:
        sharing.appears(tmp_path / "started")
        place = StageStore(root, fresh=True).fill("kind", {}, _write("new"))
        assert (place / "sub" / "file.txt").read_text() == "new"
        (kept,) = (root / "replaced").iterdir()
        assert (kept / "stage" / "sub" / "file.txt").read_text() == "old"
        other.kill()
        other.join()
    StageStore(root)
    assert list((root / "replaced").iterdir()) == []


def test_what_fresh_replaced_is_gone_at_once_if_no_other_process_is_there(tmp_path: Path) -> None:
    StageStore(tmp_path).fill("kind", {}, _write("old"))
    StageStore(tmp_path, fresh=True).fill("kind", {}, _write("new"))
    assert list((tmp_path / "replaced").iterdir()) == []


def test_a_stage_that_is_there_and_whole_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the file system has no locks, two processes may make one stage: the first one's stays,
    and nothing is swept.
    """

    def none(path: Path) -> None:
        raise locks.NoLocksError(errno.ENOLCK, "No locks available", str(path))

    monkeypatch.setattr(locks, "take", none)
    monkeypatch.setattr(locks, "wait", none)
    with caplog.at_level(logging.WARNING):
        store = StageStore(tmp_path)

    def slow(folder: Path) -> None:
        StageStore(tmp_path).fill("kind", {}, _write("first"))
        _write("second")(folder)

    place = store.fill("kind", {}, slow)
    assert (place / "sub" / "file.txt").read_text() == "first"
    assert "no locks" in caplog.text
    left = tmp_path / "scratch" / "left"
    left.mkdir()
    StageStore(tmp_path)
    assert left.exists()


def test_a_stage_may_fetch_the_stages_it_depends_on(tmp_path: Path) -> None:
    store = StageStore(tmp_path)
    inner = []

    def write(folder: Path) -> None:
        inner.append(store.fill("inner", {}, _write()))
        _write()(folder)

    store.fill("outer", {}, write)
    assert store.get("inner", {}) == inner[0]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_store_that_takes_no_more_says_how_much_is_free(tmp_path: Path, number: int) -> None:
    def write(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(number, os.strerror(number))

    with pytest.raises(MachineError, match=r"bytes were free\).*TRINITY_CACHE") as caught:
        StageStore(tmp_path).fill("kind", {}, write)
    assert str(tmp_path) in str(caught.value)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_other_errors_of_a_stage_stay_what_they_are(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "/somewhere/else")

    with pytest.raises(FileNotFoundError):
        StageStore(tmp_path).fill("kind", {}, write)


def test_a_store_that_cannot_be_written_is_read_and_refuses_to_make_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = StageStore(tmp_path).fill("kind", {}, _write())

    def read_only(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(locks, "take", read_only)
    monkeypatch.setattr(locks, "wait", read_only)
    store, worked = StageStore(tmp_path), []
    assert store.fill("kind", {}, worked.append) == place
    with pytest.raises(MachineError, match="Read-only file system"):
        store.fill("other", {}, worked.append)
    assert worked == []


def test_files_have_one_mode_the_umask_s(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "open").touch()
        (folder / "closed").touch(0o600)  # as safetensors writes them

    before = os.umask(0o027)
    try:
        place = StageStore(tmp_path).fill("kind", {}, write)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()}
    assert modes == {"open": 0o640, "closed": 0o640, "stage.json": 0o640}
    assert stat.S_IMODE(place.stat().st_mode) == 0o750


@pytest.mark.parametrize("root", ["file", "file/below", "/proc/nowhere", "x" * 300, "link"])
def test_a_store_that_cannot_be_made_is_one_paragraph(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(MachineError, match=r"cannot be made .*TRINITY_CACHE"):
        StageStore(tmp_path / root)


def test_the_root_is_a_folder_of_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("TRINITY_CACHE", "~/store")
    assert default_root() == Path("/home/someone/store")
    monkeypatch.setenv("TRINITY_CACHE", "here")
    assert default_root() == Path.cwd() / "here"
    monkeypatch.delenv("TRINITY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_root() == Path("/home/someone/.cache/trinity")


@pytest.mark.parametrize("named", ["", "~nobody-of-that-name/store"])
def test_a_root_that_is_no_folder_is_refused(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("TRINITY_CACHE", named)
    with pytest.raises(MachineError, match="TRINITY_CACHE"):
        default_root()


def test_a_user_without_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRINITY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: {}["no such user"])
    with pytest.raises(MachineError, match="TRINITY_CACHE"):
        default_root()


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    write_json(path, {"b": 1, "a": "é"})
    assert path.read_text() == '{\n "a": "é",\n "b": 1\n}\n'
    assert json.loads(path.read_text()) == {"a": "é", "b": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_holds_a_folder_s_name_that_is_no_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"m\xfc")
    write_json(tmp_path / "data.json", {"model": name})
    assert read_json(tmp_path / "data.json") == {"model": name}


def test_a_file_is_hashed_once_until_it_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "model", list[Path]()
    hashed = stages.file_sha256
    monkeypatch.setattr(stages, "file_sha256", lambda path: read.append(path) or hashed(path))

    def write(text: str, seconds_ago: int) -> None:
        path.write_text(text)
        written = path.stat().st_mtime_ns - seconds_ago * 10**9
        os.utime(path, ns=(written, written))

    write("one", 60)
    first = stages.known_sha256(path)
    assert stages.known_sha256(path) == first
    assert len(read) == 1
    write("two", 30)
    assert stages.known_sha256(path) != first
    write("new", 0)  # its time may stay what it is when it is written again
    stages.known_sha256(path)
    stages.known_sha256(path)
    assert len(read) == 4
