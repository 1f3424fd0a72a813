"""The stage store: results of finished stages, kept by the fingerprint of what they depend on.

A stage is a folder of files.  It is written beside its place and renamed into it, so it is there
whole or not at all, whatever kills the process; and its files are hashed, so damage is found when
it is read.

Any number of processes, in containers too, may share a store:

- One that makes a stage holds the stage's lock; who wants the same stage waits, and then finds it.
  Stages depend on stages without a circle, so nobody waits for himself.
- A stage that is there and whole stays.  One that is damaged or made afresh is exchanged in one
  step, and what it replaced is kept aside until every process is gone that was there before it
  and said so: one that may not write to the store cannot, and may have to read a stage again.
  So a reader needs no lock on each of the thousands of stages that it reads, only one on a file
  that says it is here.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import platformdirs

from trinity.harness.store import locks
from trinity.harness.store.presence import arrive
from trinity.harness.store.spent import Spent
from trinity.harness.store.writing import finish, scratch, swap, sweep, write_text, writing
from trinity.methods.errors import MachineError

logger = logging.getLogger(__name__)

MANIFEST = "stage.json"
PATIENCE_S = 2.0  # a process that follows another waits at every stage: long waits are said
SETTLED_NS = 1_000_000_000
REMEDY = "Make room, or set TRINITY_CACHE to another folder."


def default_root() -> Path:
    """`TRINITY_CACHE`, or the platform's cache folder; MachineError if it names no folder."""
    named = os.environ.get("TRINITY_CACHE")
    if named == "":
        msg = (
            "TRINITY_CACHE is set and empty. Set it to the folder of the stage store, or unset it."
        )
        raise MachineError(msg)
    try:
        root = Path(named or platformdirs.user_cache_path("trinity")).expanduser()
    except RuntimeError as error:  # of pathlib and platformdirs, where nobody says where home is
        where = f"TRINITY_CACHE={named}" if named else "the stage store"
        msg = f"{where}: this user has no such home folder. Set TRINITY_CACHE to a whole path."
        raise MachineError(msg) from error
    return root.absolute()


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """sha256 of plain data in canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """`file_sha256`, which this process remembers for as long as nobody touches the file."""
    at = path.stat()
    if time.time_ns() - at.st_mtime_ns <= SETTLED_NS:
        return file_sha256(path)
    return _sha256_of(path, (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns))


@cache
def _sha256_of(path: Path, _state: tuple[int, ...]) -> str:
    return file_sha256(path)


class Behind(Protocol):
    """Where stages are too that are not on this disk: `harness/store/remote.py`."""

    def fetch(self, kind: str, key: str, stage: Path) -> bool:
        """Fill an empty folder with a stage, whole; False if it is not there."""
        ...

    def send(self, kind: str, key: str, stage: Path) -> None:
        """Put a stage there."""
        ...


class StageStore:
    """Folders of results under `root`, one for each (kind, inputs).

    A store that cannot be written is read; its first missing stage is refused before it is made.
    Keep the store while its stages are read: what others replace meanwhile is kept for it.
    """

    def __init__(self, root: Path, *, fresh: bool = False, behind: Behind | None = None) -> None:
        """root: made if missing.  fresh: make every stage that this process asks for again, once.

        behind: asked for what is missing here, and given what is made here

        MachineError if there is no root and none can be made.
        """
        self.root = root
        self.spent = Spent()
        self._fresh, self._behind = fresh, behind
        self._made: set[Path] = set()
        self._whole: dict[Path, tuple[tuple[str, int, int, int], ...]] = {}
        self.made = 0  # stages that were computed here
        self._scratch, self._replaced = root / "scratch", root / "replaced"
        self._locks = root / "locks"
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
            msg = f"the stage store {root} cannot be made ({why}). Set TRINITY_CACHE elsewhere."
            raise MachineError(msg) from error
        self._presence = arrive(root)
        if self._presence is not None:
            weakref.finalize(self, self._presence.lock.release)
        sweep(self._scratch.glob("*/"))
        self._sweep_locks()
        self._remove_replaced()

    def place(self, kind: str, inputs: Mapping[str, Any]) -> Path:
        """Where a stage is, or would be."""
        key = fingerprint({"kind": kind, **inputs})
        return self.root / kind / key[:2] / key

    def get(self, kind: str, inputs: Mapping[str, Any]) -> Path | None:
        """The stage's folder, its hashes checked; None if it is missing, damaged or to be fresh."""
        place = self.place(kind, inputs)
        return place if self._is_usable(place) else None

    def fill(self, kind: str, inputs: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
        """The stage's folder, from the store, or from another process that is making it, or made
        now: `write` fills an empty folder; interrupted, it leaves none.
        """
        place = self.place(kind, inputs)
        before = _version(place)
        if self._is_usable(place):
            logger.info("%s: from the store", kind)
            return place
        self._check_there()
        with self._alone(kind, place):
            if _version(place) != before and damage(place) is None:
                # Made meanwhile by another process: as fresh as ours would be.
                self._made.add(place)
            elif not self._fetched(kind, place):
                with self.spent.making(kind):
                    self._make(kind, inputs, write, place)
                if self._behind is not None:
                    self._behind.send(kind, place.name, place)
        return place

    def claim(self, kind: str, inputs: Mapping[str, Any]) -> AbstractContextManager[bool]:
        """Whether this process alone claims the stage, while it lasts: `fill` waits for others."""
        return locks.claim(self._locks / f"{self.place(kind, inputs).name}.claim")

    def _is_usable(self, place: Path) -> bool:
        if self._fresh and place not in self._made:
            return False
        with contextlib.suppress(OSError):  # missing, or it may only be read
            os.utime(place)  # when it was last wanted: what is pruned first
        state = _state(place)
        if state is not None and self._whole.get(place) == state:
            return True  # this process has read it, and nobody has touched it since
        while True:
            before = _version(place)
            found = damage(place)
            if _version(place) == before:  # not exchanged while it was read
                break
        if found is None and state is not None and _is_settled(state):
            self._whole[place] = state
        if found is not None and place.exists():
            logger.warning("stage %s is damaged (%s): it is computed again", place, found)
        return found is None

    def _check_there(self, error: OSError | None = None) -> None:
        """MachineError if the whole store is gone: removed, or its file system."""
        if not self.root.is_dir():
            msg = (
                f"the stage store {self.root} is gone: it was removed, or its file system is not "
                f"there any more, while this command used it. See to that, and run it again."
            )
            raise MachineError(msg) from error

    def _fetched(self, kind: str, place: Path) -> bool:
        """Whether what is behind this store had the stage, which is in its place now."""
        if self._behind is None or self._fresh:
            return False
        with self._beside(place) as stage:
            if not self._behind.fetch(kind, place.name, stage):
                return False
            finish(stage)
            self._settle(stage, place)
        return True

    @contextlib.contextmanager
    def _beside(self, place: Path) -> Iterator[Path]:
        """An empty folder, to be filled and settled in its place."""
        with writing(self.root, REMEDY):
            for folder in (place.parent, self._scratch):
                folder.mkdir(parents=True, exist_ok=True)
            with scratch(self._scratch, "") as own:
                stage = own / "stage"
                stage.mkdir()
                yield stage

    def _make(
        self, kind: str, inputs: Mapping[str, Any], write: Callable[[Path], None], place: Path
    ) -> None:
        with self._beside(place) as stage:
            try:
                write(stage)
            except FileNotFoundError as error:
                self._check_there(error)
                raise
            hashes = {
                str(path.relative_to(stage)): file_sha256(path)
                for path in sorted(stage.rglob("*"))
                if path.is_file()
            }
            manifest = {"kind": kind, "inputs": dict(inputs), "files": hashes}
            # From which the code's hash follows: `trinity cache` asks whether it still does.
            modules = getattr(inputs.get("code"), "modules", None)
            manifest |= {"modules": list(modules)} if modules else {}
            write_json(stage / MANIFEST, manifest)
            finish(stage)
            self._settle(stage, place)
        self._made.add(place)
        self.made += 1

    def _settle(self, stage: Path, place: Path) -> None:
        """Put a finished stage in its place, where another may be."""
        try:
            stage.rename(place)
        except OSError:
            if not place.exists():
                raise
            if not self._fresh and damage(place) is None:
                return  # only where there are no locks: another process was first
            self._replaced.mkdir(exist_ok=True)
            folder = Path(tempfile.mkdtemp(dir=self._replaced))
            stage.rename(folder / "stage")
            swap(folder / "stage", place)
            os.utime(folder)  # when the old stage was last to be had under its name
            self._remove_replaced()

    @contextlib.contextmanager
    def _alone(self, kind: str, place: Path) -> Iterator[None]:
        """Hold a stage's lock, so that no two processes make it at once."""
        lock = self._lock(kind, self._locks / place.name)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _lock(self, kind: str, path: Path) -> locks.Lock | None:
        with writing(self.root, REMEDY):
            path.parent.mkdir(exist_ok=True)
            try:
                lock = locks.take_within(PATIENCE_S, path)
                if lock is None:
                    who = locks.holder(path)
                    logger.warning("stage '%s' is being made by %s: waiting for it", kind, who)
                    lock = locks.wait(path)
            except locks.NoLocksError:
                return None  # as was said on arrival
        return lock

    def _sweep_locks(self) -> None:
        """Remove the files of locks that nobody holds: of processes killed when their stage was
        in its place already, so that nobody makes it again and releases its lock.
        """
        with contextlib.suppress(OSError):  # without locks, or where it cannot be written
            for path in self._locks.iterdir():
                lock = locks.take(path)
                if lock is not None:
                    lock.release()

    def remove(self, places: Iterable[Path]) -> None:
        """Remove stages; MachineError while another process uses the store, or nobody can know."""
        if self._presence is None:
            msg = (
                f"{self.root}: cannot be pruned: it cannot be written, or its file system has no "
                f"locks, so nobody can know whether a stage is in use."
            )
            raise MachineError(msg)
        with writing(self.root, REMEDY):
            self._replaced.mkdir(exist_ok=True)
            with self._presence.alone():
                aside = Path(tempfile.mkdtemp(dir=self._replaced))
                for number, place in enumerate(places):
                    with contextlib.suppress(FileNotFoundError):
                        place.rename(aside / str(number))
            shutil.rmtree(aside, ignore_errors=True)

    def _remove_replaced(self) -> None:
        """Remove stages that were replaced before any other process arrived that is still here.

        What this one has open of them stays readable, and by name it reads what replaced them.
        """
        if self._presence is None:
            return
        with contextlib.suppress(OSError):  # what cannot be known is kept
            first = self._presence.first_other()
            for folder in self._replaced.iterdir():
                if first is None or folder.stat().st_mtime_ns < first:
                    shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, data: Any) -> None:
    """Sorted, indented JSON, replaced in one step so that a reader never sees half a file."""
    write_text(path, as_json(data))


def as_json(data: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """What a JSON file holds; ValueError if it is none, also by values nested too deep."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        msg = "its values are nested deeper than Python can follow"
        raise ValueError(msg) from error


def link_or_copy(source: Path, destination: Path) -> None:
    """A second name for a stored file where the file system allows it, else a copy.

    From stage to stage only: a user may edit a folder of his own, and the store would change.
    """
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def _version(place: Path) -> tuple[int, int] | None:
    """Which making of a stage is in its place; None if none is."""
    try:
        found = (place / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _state(place: Path) -> tuple[tuple[str, int, int, int], ...] | None:
    """Number, size and time of every file; None if the stage is not there or may not be read."""
    try:
        place.joinpath(MANIFEST).stat()
        found = [(path, path.stat()) for path in sorted(place.rglob("*"))]
    except OSError:
        return None
    return tuple((path.name, at.st_ino, at.st_size, at.st_mtime_ns) for path, at in found)


def _is_settled(state: tuple[tuple[str, int, int, int], ...]) -> bool:
    """Whether a change from now on would have another time: clocks of file systems tick slowly."""
    return time.time_ns() - max(changed for *_, changed in state) > SETTLED_NS


def damage(place: Path) -> str | None:
    """What is wrong with a stage, None if it is whole; MachineError if it may not be read."""
    try:
        files = read_json(place / MANIFEST)["files"]
        for name, expected in files.items():
            path = Path(name)
            if path.is_absolute() or ".." in path.parts or (place / path).is_symlink():
                return f"{name} leads out of it"
            if file_sha256(place / name) != expected:
                return f"{name} has another hash than when it was written"
    except PermissionError as error:
        msg = (
            f"stage {place}: may not be read by this user ({error.filename}). Set TRINITY_CACHE to "
            f"a folder of your own, or ask who made it for the right to read."
        )
        raise MachineError(msg) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return repr(error)
    return None
