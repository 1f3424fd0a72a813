"""What a gate compares with: records of a path, of a commit, or the last of a branch or machine."""

import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trinity.harness.records import record
from trinity.harness.records.record import Record
from trinity.methods.errors import ConfigError

LAST = re.compile(r"last:([1-9][0-9]*)(?::(branch|machine)=(.+))?")
FORMS = (
    "Give a record or a folder of records, a git commit, branch or tag that holds some, or "
    "last:N, last:N:branch=NAME or last:N:machine=NAME; or run:COMMIT, to run the recipes there."
)


@dataclass(frozen=True, eq=False)
class Kept:
    """A record and where it is kept: a file, or a commit and the path in it."""

    place: str
    record: Record


@dataclass(frozen=True, eq=False)
class Reference:
    """The records that a name stands for, the oldest first.

    label: in words   at_most: how many of one recipe, from the newest
    broken: recipes whose run for the baseline left no record, and why
    """

    label: str
    kept: Sequence[Kept]
    at_most: int = 1
    broken: Mapping[str, str] = field(default_factory=dict)

    def of(self, ours: Record, besides: str = "") -> list[Kept]:
        """Those of the same recipe and model, the newest last.  besides: the place of ours"""
        same = [
            one
            for one in self.kept
            if one.record.recipe["name"] == ours.recipe["name"]
            and one.record.model.sha256 == ours.model.sha256
            and not (besides and Path(one.place).resolve() == Path(besides).resolve())
        ]
        return same[-self.at_most :]

    def why_none(self, recipe: str) -> str:
        """Why there is no record of a recipe."""
        if recipe in self.broken:
            return f"the baseline's run {self.broken[recipe]}"
        return "no record of this recipe and model"


def resolve(name: str, records: Path) -> Reference:
    """The records that `name` stands for; ConfigError if it is none of the forms.

    records: the folder of the project's own records
    """
    if last := LAST.fullmatch(name):
        kept = read_folder(records)
        if last[2] == "branch":
            kept = [one for one in kept if branch_of(one.record) == last[3]]
        if last[2] == "machine":
            kept = [one for one in kept if one.record.environment["machine"] == last[3]]
        return Reference(name, kept, int(last[1]))
    if name.startswith("last:"):
        msg = f"--baseline {name}: expected last:N with N from 1. {FORMS}"
        raise ConfigError(msg)
    path = Path(name)
    if path.is_file():
        return Reference(name, [Kept(str(path), record.read(path))])
    if path.is_dir():
        return Reference(name, read_folder(path))
    return _of_commit(name, records)


def read_folder(folder: Path) -> list[Kept]:
    """Every record below `v1` of a folder, the oldest first; none where there is no folder."""
    paths = (folder / "v1").rglob("*.json")
    return _by_age((str(path), record.read(path)) for path in paths)


def branch_of(found: Record) -> str | None:
    """The branch of the project that a record was made in; None of older records."""
    project = found.environment.get("project") or {}
    branch: str | None = project.get("branch")
    return branch


def _by_age(found: Iterable[tuple[str, Record]]) -> list[Kept]:
    kept = [Kept(place, one) for place, one in found]
    return sorted(kept, key=lambda one: record.age(Path(one.place), one.record))


def _of_commit(name: str, records: Path) -> Reference:
    """The records that a commit holds, without checking it out."""
    folder = next(place for place in (records, *records.resolve().parents) if place.is_dir())
    try:
        commit = _git(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
        top = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
        inside = (records.resolve() / "v1").relative_to(top.resolve()).as_posix()
        listed = _git(folder, "ls-tree", "-r", "-z", "--name-only", "--full-tree", commit, inside)
        paths = [path for path in listed.split("\0") if path.endswith(".json")]
        texts = [(path, _git(folder, "show", f"{commit}:{path}")) for path in paths]
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        msg = f"--baseline {name}: is neither a file or folder here nor a git commit. {FORMS}"
        raise ConfigError(msg) from error
    found = [(f"{name}:{path}", record.parse(text, f"{name}:{path}")) for path, text in texts]
    return Reference(f"{name} ({commit[:12]})", _by_age(found))


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
