"""Writing: files and folders that are there whole or not at all, in places tried before the work.

What is being written lies in a folder of its own beside its place, whose lock its writer holds; so
what a killed writer left can be told from what is being written, in whichever container.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from trinity.harness.store import locks
from trinity.methods.errors import ConfigError, MachineError

PREFIX = ".trinity-unfinished-"  # of folders beside what a user made
LOCK = "lock"
RESERVED = "lost+found"  # in an empty file system that was just mounted
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)
# Of libraries that write files themselves: safetensors (in Rust) and torch.save.
FULL_IN_WORDS = ("No space left on device", "Disk quota exceeded", "unexpected pos")
NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
EXCHANGE, HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD (Linux)
GOING_S = 0.1  # in which a folder that can be removed is gone
ELSEWHERE = "Make room, or name another folder."


@contextlib.contextmanager
def writing(folder: Path, remedy: str = ELSEWHERE) -> Iterator[None]:
    """MachineError, naming the folder and what is free there, where nothing more can be written.

    remedy: what to do about that folder; it may be another one that is full, of temporary files
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if _is_full(error):
            full = _full_folder(error, folder)
            # Of a library's own words, and of an error without a number.
            said = getattr(error, "strerror", None) or "No space left on device"
            reason = f"{said}; {_free(full):,} bytes were free"
        elif isinstance(error, OSError) and error.errno in REFUSED and _is_below(error, folder):
            full, reason = folder, str(error.strerror)
        else:
            raise
        do = remedy if full == folder else "Make room there."
        msg = f"{full}: cannot be written ({reason}). {do}"
        raise MachineError(msg) from error


def check_new(out: Path, option: str = "--out") -> None:
    """Before the work: a folder to be made is new or empty, and can be written.

    ConfigError if something is in the way: nothing a user made is overwritten.
    """
    check_writable(out, option)
    if out.is_dir():
        sweep(_unfinished(out))
        if _content(out):
            msg = f"{option} {out}: is not an empty folder. Choose another, or empty it."
            raise ConfigError(msg)


def check_writable(folder: Path, option: str = "--out") -> None:
    """Before the work: try to write where a folder is or will be; nothing is left behind.

    ConfigError for a place that is no folder, MachineError for one that takes no file.
    """
    there = folder.absolute()
    try:
        while not os.path.lexists(there):
            there = there.parent
        if not there.is_dir():
            what = "is a link to nothing" if there.is_symlink() else "is a file, not a folder"
            msg = f"{option} {folder}: {there} {what}. Choose another place."
            raise ConfigError(msg)
        longest = os.pathconf(there, "PC_NAME_MAX")
        for name in folder.absolute().relative_to(there).parts:
            if len(os.fsencode(name)) > longest:
                msg = f"{option} {folder}: '{name[:40]}...' is longer than {longest} bytes."
                raise ConfigError(msg)
        # Permission bits say nothing about root, a full disk or a read-only mount.
        with tempfile.TemporaryDirectory(prefix=".trinity-trial-", dir=there) as trial:
            Path(trial, "trial").write_bytes(bytes(4096))
    except OSError as error:
        msg = f"{option} {folder}: cannot be written ({error.strerror}, {there}). {ELSEWHERE}"
        raise MachineError(msg) from error


def make_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` make a folder beside `path`, then rename it: it is there whole or not at all.

    A folder that is there and empty is filled instead: it may be a mount point, which no rename
    can replace, or the folder someone stands in.
    """
    path = path.absolute()
    filled = path.is_dir()
    parent = path if filled else path.parent
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        sweep(_unfinished(parent))
        with scratch(parent, PREFIX) as own:
            made = own / "made"
            fill(made)
            finish(made)
            if filled:
                _check_still_empty(path, besides=own.name)
                _move_into(path, made)
            else:
                if path.exists():
                    _check_still_empty(path)
                made.rename(path)


def write_text(path: Path, text: str) -> None:
    """A text file, replaced in one step so that a reader never sees half of it."""
    with _beside(path, text) as beside:
        beside.replace(path)


def write_new(path: Path, text: str) -> bool:
    """A text file that was not there before; False if another has the name."""
    with _beside(path, text) as beside:
        try:
            os.link(beside, path)
        except FileExistsError:
            return False
        except OSError:  # no hard links here: the name is taken first, then filled
            try:
                path.open("x", encoding="utf-8").close()
            except FileExistsError:
                return False
            beside.replace(path)
    return True


@contextlib.contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder for one writer, removed at the end.  Its lock says that the writer is alive."""
    folder, lock = _own_folder(parent, prefix)
    try:
        yield folder
    finally:
        _remove(folder, lock)


def _unfinished(parent: Path) -> list[Path]:
    """Folders of writers in a user's folder, by name and lock, or empty: one was killed before it
    had a lock, or after.  All else there is the user's.
    """
    return [folder for folder in parent.glob(f"{PREFIX}*") if _is_left(folder)]


def _is_left(folder: Path) -> bool:
    try:
        names = os.listdir(folder)
    except OSError:  # a file, or gone meanwhile
        return False
    return LOCK in names or not names


def sweep(leftovers: Iterable[Path]) -> None:
    """Remove what killed writers left.  Whose lock cannot be had may be alive, wherever it runs."""
    for leftover in leftovers:
        with contextlib.suppress(OSError):
            lock = locks.take(leftover / LOCK)
            if lock is not None:
                _remove(leftover, lock)


def finish(folder: Path) -> None:
    """Give files and folders one mode, the umask's, and force them to disk.

    Libraries write some with 600.  A rename that survives a power cut must not outlive its content.
    folder: in a scratch folder
    """
    probe = folder.with_name("probe")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        wanted = mode | (mode & 0o444) >> 2 if path.is_dir() else mode
        if stat.S_IMODE(path.stat().st_mode) & 0o777 != wanted:
            with contextlib.suppress(PermissionError):  # a file system without modes
                path.chmod(wanted)
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def swap(first: Path, second: Path) -> None:
    """Exchange two folders' names: in one step, so that a reader never misses either, where the
    file system can do that.
    """
    failed = _exchange(first, second)
    if not failed:
        return
    aside = first.with_name(f"{first.name}-aside")
    if failed in NO_EXCHANGE:
        second.rename(aside)
    elif failed == errno.EXDEV:
        # An overlay does not rename a folder of its lower layer: a store in a container's image.
        shutil.copytree(second, aside)
        shutil.rmtree(second)
    else:
        raise OSError(failed, os.strerror(failed), str(second))
    first.rename(second)
    aside.rename(first)


def _exchange(first: Path, second: Path) -> int:
    """The number of the error; 0 if two names were exchanged in one step."""
    try:
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library without it
        return errno.ENOSYS
    names = os.fsencode(first), os.fsencode(second)
    failed = exchange(HERE, names[0], HERE, names[1], EXCHANGE)
    return ctypes.get_errno() if failed else 0


def _own_folder(parent: Path, prefix: str) -> tuple[Path, locks.Lock | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = locks.take(folder / LOCK)
        except locks.NoLocksError:
            return folder, None  # then nobody sweeps either
        except FileNotFoundError:
            continue  # swept between the two lines above
        if lock is not None:
            return folder, lock


def _remove(folder: Path, lock: locks.Lock | None) -> None:
    """Whatever of it cannot be removed keeps the lock's file, by which it is swept later."""
    # The lock last, so also of a process that is killed here.
    try:
        for path in folder.iterdir():
            if path.name != LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError:
        if lock is not None:
            lock.let_go()
        return
    if lock is not None:
        lock.release()
    with contextlib.suppress(OSError):  # NFS keeps a folder while a file of it is open
        folder.rmdir()


def _is_full(error: Exception) -> bool:
    """Whether a disk or a user's share of it is full, as Python or a library says it."""
    by_number = isinstance(error, OSError) and error.errno in FULL
    return by_number or any(words in str(error) for words in FULL_IN_WORDS)


def _is_below(error: OSError, folder: Path) -> bool:
    named = error.filename
    return isinstance(named, (str, bytes)) and Path(os.fsdecode(named)).is_relative_to(folder)


def _full_folder(error: Exception, folder: Path) -> Path:
    """Which folder is full: the one that is named, else the fuller of what is written to."""
    if isinstance(error, OSError) and error.filename and not _is_below(error, folder):
        return Path(error.filename).parent
    return min((folder, Path(tempfile.gettempdir())), key=_free)


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _content(folder: Path, besides: str = "") -> list[str]:
    return [p.name for p in folder.iterdir() if p.name not in (RESERVED, besides)]


def _asked_for_first(path: Path) -> tuple[bool, bool, str]:
    return path.name == "config.json", path.suffix == ".json", path.name


def _check_still_empty(path: Path, besides: str = "") -> None:
    other = _content(path, besides) if path.is_dir() else [path.name]
    if other:
        msg = f"{path}: is not empty any more, '{other[0]}' was written meanwhile. Choose another."
        raise ConfigError(msg)


def _move_into(path: Path, made: Path) -> None:
    """Move what was made into an empty folder, last what readers ask for first: config.json."""
    moved: list[Path] = []
    try:
        for item in sorted(made.iterdir(), key=_asked_for_first):
            moved.append(path / item.name)
            item.rename(moved[-1])
    except BaseException:  # Ctrl-C too: no half of a folder stays
        for item in moved:
            shutil.rmtree(item) if item.is_dir() else item.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _beside(path: Path, text: str) -> Iterator[Path]:
    """The text in a file beside its place, which is gone at the end."""
    with writing(path.parent):
        sweep(_unfinished(path.parent))
        with scratch(path.parent, PREFIX) as own:
            beside = own / "text"
            # A folder's name need not be UTF-8; in JSON, its bytes become escapes that read back.
            with beside.open("x", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            yield beside
        _wait_until_gone(own)


def _wait_until_gone(folder: Path) -> None:
    """PermissionError if a writer's folder stays: in a stage, it would be taken for a part of it.

    Another process may be sweeping it: between its lock and its end it looks like a killed one's.
    """
    until = time.monotonic() + GOING_S
    while folder.exists():
        if time.monotonic() > until:
            raise PermissionError(errno.EACCES, "a file there cannot be removed", str(folder))
        sweep([folder])
        time.sleep(0.001)
