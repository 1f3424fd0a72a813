"""The stage store: results of finished stages, kept by the fingerprint of what they depend on.

A stage is a folder of files.  It is written beside its place and renamed into it, so it is there
whole or not at all, whatever kills the process; and its files are hashed, so damage is found when
it is read.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import platformdirs
import psutil

logger = logging.getLogger(__name__)

MANIFEST = "stage.json"


def default_root() -> Path:
    """`TRINITY_CACHE`, or the platform's cache folder."""
    named = os.environ.get("TRINITY_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("trinity")


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """sha256 of plain data in canonical JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class StageStore:
    """Folders of results under `root`, one for each (kind, inputs)."""

    def __init__(self, root: Path, *, fresh: bool = False) -> None:
        """root: made if missing.  fresh: recompute every stage that this process asks for, once."""
        self.root = root
        self._recompute = fresh
        self._made: set[Path] = set()
        self._scratch = root / "scratch"
        _sweep(self._scratch)

    def place(self, kind: str, inputs: Mapping[str, Any]) -> Path:
        """Where a stage is, or would be."""
        key = fingerprint({"kind": kind, **inputs})
        return self.root / kind / key[:2] / key

    def get(self, kind: str, inputs: Mapping[str, Any]) -> Path | None:
        """The stage's folder, its hashes checked; None if it is missing or damaged."""
        place = self.place(kind, inputs)
        if not place.exists() or (self._recompute and place not in self._made):
            return None
        damage = _damage(place)
        if damage is None:
            return place
        logger.warning("stage %s is damaged (%s): it is computed again", place, damage)
        shutil.rmtree(place)
        return None

    def put(self, kind: str, inputs: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
        """Let `write` fill an empty folder, then make it the stage; interrupted, it leaves none."""
        place = self.place(kind, inputs)
        place.parent.mkdir(parents=True, exist_ok=True)
        self._scratch.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{os.getpid()}-", dir=self._scratch, ignore_cleanup_errors=True
        ) as scratch:
            folder = Path(scratch, "stage")
            folder.mkdir()
            write(folder)
            hashes = {
                str(path.relative_to(folder)): file_sha256(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            manifest = {"kind": kind, "inputs": dict(inputs), "files": hashes}
            write_json(folder / MANIFEST, manifest)
            _flush(folder)
            if place.exists():
                shutil.rmtree(place)
            folder.rename(place)
        self._made.add(place)
        return place

    def fetch(self, kind: str, inputs: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
        """The stage's folder, from the store or made now."""
        found = self.get(kind, inputs)
        if found is not None:
            logger.info("%s: from the store", kind)
            return found
        return self.put(kind, inputs, write)


def write_json(path: Path, data: Any) -> None:
    """Sorted, indented JSON, replaced in one step so that a reader never sees half a file."""
    write_text(path, json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file, replaced in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def make_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` make a folder beside `path`, then rename it: it is there whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fill(beside)
        beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text())


def link_or_copy(source: Path, destination: Path) -> None:
    """A second name for a stored file where the file system allows it, else a copy."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def _sweep(scratch: Path) -> None:
    """Remove what killed processes left half-written."""
    for leftover in scratch.glob("*-*"):
        process = leftover.name.partition("-")[0]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(leftover, ignore_errors=True)


def _damage(place: Path) -> str | None:
    try:
        files = read_json(place / MANIFEST)["files"]
        for name, expected in files.items():
            if file_sha256(place / name) != expected:
                return f"{name} has another hash than when it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return repr(error)
    return None


def _flush(folder: Path) -> None:
    """Force the files to disk: a rename that survives a power cut must not outlive its content."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
