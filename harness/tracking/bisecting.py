"""The commits between two records, and the command that tests one of them."""

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from trinity.harness.records.record import Record
from trinity.harness.tracking.changes import code
from trinity.methods.errors import ConfigError


@dataclass(frozen=True)
class Bisection:
    """commits: (hash, day, subject), the oldest first; the last is that of the bad record

    repository: where they are   test: the command that tests the commit that is checked out
    session: commands that let git find the first bad one
    """

    repository: str
    commits: list[tuple[str, str, str]]
    test: str
    session: list[str]


def between(good: Path, bad: Path, records: tuple[Record, Record], policy: str) -> Bisection:
    """good, bad: record files, and what they hold   policy: of the gate that judges a commit"""
    first, last = records
    if first.recipe["name"] != last.recipe["name"]:
        msg = (
            f"bisect {good} {bad}: the records are of recipes '{first.recipe['name']}' and "
            f"'{last.recipe['name']}'. Give two of one recipe."
        )
        raise ConfigError(msg)
    repository, ends = _repository(good, bad, first, last)
    span = f"{ends[0]}..{ends[1]}"
    listed = _git(repository, "log", "--reverse", "--format=%H%x09%as%x09%s", span)
    commits = [tuple(line.split("\t", 2)) for line in listed.splitlines()]
    if not commits:
        msg = (
            f"bisect {good} {bad}: no commit lies between {ends[0][:12]} and {ends[1][:12]}. "
            f"Give the older record first."
        )
        raise ConfigError(msg)
    baseline = shlex.quote(str(good.resolve()))
    gate = f"trinity gate --policy {shlex.quote(policy)} --baseline {baseline}"
    # git bisect reads 125 as 'cannot be tested', and every other code below 128 as bad.
    ended = "code=$?; [ $code -lt 2 ] && exit $code; exit 125"
    test = f'{gate} --out "${{TMPDIR:-/tmp}}/bisect-gate"; {ended}'
    return Bisection(
        repository,
        [(commit, day, subject) for commit, day, subject in commits],
        gate,
        [
            f"git -C {shlex.quote(repository)} bisect start {ends[1]} {ends[0]}",
            f"git -C {shlex.quote(repository)} bisect run sh -c {shlex.quote(test)}",
            f"git -C {shlex.quote(repository)} bisect reset",
        ],
    )


def _repository(good: Path, bad: Path, first: Record, last: Record) -> tuple[str, tuple[str, str]]:
    """The repository whose commit moved between two records: the project's, else Trinity's own."""
    ends = [code(found) for found in (first, last)]
    places = {"project.commit": Path.cwd(), "trinity.commit": Path(__file__).resolve().parent}
    tried = []
    for key, place in places.items():
        one, other = ends[0][key], ends[1][key]
        if not one or not other or one == other:
            tried.append(f"{key} {'is the same' if one and one == other else 'is not recorded'}")
            continue
        try:
            for commit in (one, other):
                _git(str(place), "cat-file", "-e", f"{commit}^{{commit}}")
            return _git(str(place), "rev-parse", "--show-toplevel").strip(), (one, other)
        except (OSError, subprocess.CalledProcessError):
            tried.append(f"{key} {one[:12]} or {other[:12]} is in no repository at {place}")
    msg = f"bisect {good} {bad}: nothing to look through: {'; '.join(tried)}."
    raise ConfigError(msg)


def _git(folder: str, *words: str) -> str:
    command = ["git", "-C", folder, *words]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
