import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from trinity.harness.store import locks, writing
from trinity.methods.errors import ConfigError, MachineError


def _fill(folder: Path) -> None:
    """As a checkpoint is written: weights as safetensors writes them, and text."""
    folder.mkdir()
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").touch()


NAMES = ["config.json", "model.safetensors", "sub"]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _half(folder: Path) -> None:
    _fill(folder)
    raise KeyboardInterrupt


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "new" / "out"
    if there:
        out.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        writing.make_folder(out, _half)
    assert out.exists() == there
    assert not there or _names(out) == []
    assert _names(out.parent) == ["out"] * there
    writing.make_folder(out, _fill)
    assert _names(out) == NAMES
    assert _names(out.parent) == ["out"]


def test_an_empty_folder_is_filled_and_stays_the_same_folder(tmp_path: Path) -> None:
    """It may be a mount point, or where someone stands."""
    (tmp_path / "lost+found").mkdir()
    before = tmp_path.stat().st_ino
    writing.check_new(tmp_path)
    writing.make_folder(tmp_path, _fill)
    assert tmp_path.stat().st_ino == before
    assert _names(tmp_path) == sorted([*NAMES, "lost+found"])


def test_the_folder_one_stands_in_can_be_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    writing.check_new(Path())
    writing.make_folder(Path(), _fill)
    assert _names(Path()) == NAMES


def test_a_folder_that_is_filled_ends_with_what_readers_ask_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    rename = Path.rename

    def noted(path: Path, target: Path) -> Path:
        moved.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", noted)
    writing.make_folder(tmp_path, _fill)
    assert moved[-1] == "config.json"


def test_a_folder_that_cannot_be_filled_to_the_end_is_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def broken(path: Path, target: Path) -> Path:
        if path.name == "config.json":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(KeyboardInterrupt):
        writing.make_folder(tmp_path, _fill)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("there", [False, True])
def test_nothing_that_was_written_meanwhile_is_overwritten(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()

    def fill(folder: Path) -> None:
        _fill(folder)
        out.mkdir(exist_ok=True)
        (out / "config.json").write_text("mine", encoding="utf-8")

    with pytest.raises(ConfigError, match="not empty any more"):
        writing.make_folder(out, fill)
    assert (out / "config.json").read_text(encoding="utf-8") == "mine"
    assert _names(out) == ["config.json"]
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_all_files_have_the_mode_of_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        writing.make_folder(tmp_path / "out", _fill)
    finally:
        os.umask(before)
    for path in (tmp_path / "out").rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_what_a_killed_writer_left_is_swept_and_does_not_count(tmp_path: Path) -> None:
    left = tmp_path / f"{writing.PREFIX}left"
    left.mkdir()
    (left / "lock").touch()
    (left / "made").mkdir()
    writing.check_new(tmp_path)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("name", [".trinity-cache", f"{writing.PREFIX}notes"])
def test_a_folder_of_the_users_is_never_swept(tmp_path: Path, name: str) -> None:
    kept = tmp_path / name / "kept"
    kept.parent.mkdir()
    kept.touch()
    writing.make_folder(tmp_path / "out", _fill)
    with pytest.raises(ConfigError, match="not an empty folder"):
        writing.check_new(tmp_path)
    assert kept.exists()


def test_a_folder_that_another_process_is_filling_is_not_empty(tmp_path: Path) -> None:
    with writing.scratch(tmp_path, writing.PREFIX) as own:
        with pytest.raises(ConfigError, match="not an empty folder"):
            writing.check_new(tmp_path)
        assert own.exists()


def _in_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "out"


def _a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def _link_to_nothing(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "nothing")
    return folder / "link"


def _not_empty(folder: Path) -> Path:
    (folder / "file").touch()
    return folder


def _too_long(folder: Path) -> Path:
    return folder / ("ü" * 128)


@pytest.mark.parametrize("make", [_in_a_file, _a_file, _link_to_nothing, _not_empty, _too_long])
def test_what_can_be_no_new_folder_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(ConfigError, match=r"^--out /"):
        writing.check_new(make(tmp_path))


def test_a_place_that_takes_no_file_is_refused_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    # Root may write there all the same; nobody may write to /proc.
    place = Path("/proc/out") if os.access(tmp_path, os.W_OK) else tmp_path / "new" / "out"
    try:
        with pytest.raises(MachineError, match="cannot be written"):
            writing.check_writable(place)
    finally:
        tmp_path.chmod(0o700)


def test_trying_leaves_nothing(tmp_path: Path) -> None:
    writing.check_writable(tmp_path / "a" / "b")
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    "error_in",
    [
        lambda folder: OSError(errno.ENOSPC, "No space left on device"),
        lambda folder: SafetensorError("I/O error: No space left on device (os error 28)"),
        lambda folder: RuntimeError("[enforce fail at inline_container.cc] . unexpected pos 5"),
        lambda folder: PermissionError(errno.EACCES, "Permission denied", str(folder / "file")),
    ],
)
def test_a_disk_that_takes_no_more_is_one_paragraph(
    tmp_path: Path, error_in: Callable[[Path], Exception]
) -> None:
    def fill(folder: Path) -> None:
        folder.mkdir()
        raise error_in(folder)

    with pytest.raises(MachineError, match=rf"^{tmp_path}: cannot be written \("):
        writing.make_folder(tmp_path / "out", fill)
    assert _names(tmp_path) == []


def test_another_disk_that_is_full_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    monkeypatch.setattr(writing, "_free", {here: 10**9, elsewhere: 7}.__getitem__)
    message = f"^{elsewhere}: cannot be written .* 7 bytes were free.*Make room there"
    for name in (None, str(elsewhere / "file")):
        with pytest.raises(MachineError, match=message), writing.writing(here):
            raise OSError(errno.ENOSPC, "No space left on device", name)


def test_a_text_is_replaced_whole_and_new_ones_replace_nothing(tmp_path: Path) -> None:
    path = tmp_path / "text"
    assert writing.write_new(path, "é–")
    assert not writing.write_new(path, "another")
    assert path.read_text(encoding="utf-8") == "é–"
    writing.write_text(path, "third")
    assert path.read_text(encoding="utf-8") == "third"
    assert _names(tmp_path) == ["text"]


def test_new_texts_need_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert writing.write_new(tmp_path / "text", "first")
    assert not writing.write_new(tmp_path / "text", "second")
    assert (tmp_path / "text").read_text() == "first"


@pytest.mark.parametrize("failure", [None, errno.EINVAL, errno.ENOSYS, errno.EXDEV])
def test_a_swap_exchanges_two_folders_with_or_without_the_system_s_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int | None
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / folder.name).touch()
    if failure is not None:
        monkeypatch.setattr(writing, "_exchange", lambda *_: failure)
    writing.swap(first, second)
    assert (_names(first), _names(second)) == (["second"], ["first"])
    assert _names(tmp_path) == ["first", "second"]


def test_a_swap_with_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    with pytest.raises(FileNotFoundError):
        writing.swap(tmp_path / "first", tmp_path / "second")


def test_a_lock_is_had_once_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = locks.take(path)
    assert lock is not None
    assert locks.take(path) is None
    assert "process" in locks.holder(path)
    lock.release()
    assert not path.exists()
    again = locks.wait(path)
    again.release()


def test_a_folder_whose_name_goes_on_is_not_below_another(tmp_path: Path) -> None:
    inside, beside = tmp_path / "cache" / "x", tmp_path / "cache2" / "x"
    found = [
        writing._is_below(OSError(errno.EACCES, "no", str(path)), tmp_path / "cache")
        for path in (inside, beside)
    ]
    assert found == [True, False]
