"""Processes of these tests: forked from one that has everything loaded, so that one costs little,
and what they leave behind.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.faults import jobs
from trinity.harness.records import record
from trinity.harness.store import stages, writing

# Ten times as many cases, or another set of them: docs/reliability.md has the commands.
TIMES = int(os.environ.get("TRINITY_FAULTS", "1"))
SEED = int(os.environ.get("TRINITY_FAULTS_SEED", "0"))
ROOT = Path(__file__).parents[2]
OUR_OWN = ("locks", "scratch", "here", "replaced", "gate")
# They hold seconds, or hashes of such files.
CLOCKS = ("timing.json", "stage.json", "training-runs.jsonl")
FOLDERS = ("compressed", "exported", "lowered")


def context() -> ForkServerContext:
    """Processes are forked from one that imported `warmed`; its environment is today's."""
    os.environ["OMP_NUM_THREADS"] = "1"
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.faults.warmed"])
    # Python 3.11 does not give that process the path of this one: it finds `tests` where it starts,
    # or says nothing, and each process imports everything itself.
    with contextlib.chdir(ROOT):
        forkserver.ensure_running()
    return found


@contextlib.contextmanager
def started(said: Path, job: Callable[..., None], *arguments: Any) -> Iterator[BaseProcess]:
    """A process at work, killed at the end if it still runs.  said: the file of its output"""
    process = context().Process(target=jobs.quietly, args=(said, job, *arguments))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def done(said: Path, job: Callable[..., None], *arguments: Any, seconds: float = 120) -> int:
    """The exit code of a process that is waited for."""
    with started(said, job, *arguments) as process:
        process.join(seconds)
        assert process.exitcode is not None, f"hangs: {said.read_text(encoding='utf-8')}"
        return process.exitcode


def whole(place: Path, job: Callable[..., None], *arguments: Any) -> None:
    """Do a job to its end."""
    code = done(place.with_name(f"{place.name}.txt"), job, *arguments)
    assert code == 0, place.with_name(f"{place.name}.txt").read_text(encoding="utf-8")


def left(place: Path) -> dict[str, str]:
    """Hashes of all that a run leaves under a name, without what says when or how long it was."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        top, second = (*name.split(os.sep), "")[:2]
        if not path.is_file() or path.name in CLOCKS or second in (*OUR_OWN, "attempts"):
            continue
        if is_unfinished(path):
            continue
        content = path.read_bytes()
        if path.name == "record.json" or name.startswith("results"):
            content = json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
            name = str(path.parent.relative_to(place)) if top == "results" else name
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def is_unfinished(path: Path) -> bool:
    """Whether a killed writer left this, under no name of ours; `check_tidy` sees it swept."""
    return any(part.startswith(writing.PREFIX) for part in path.parts)


def _timeless(data: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in data.items() if k not in ("date", "sha256")}
    if kept["lowering"]:
        kept["lowering"] = {**kept["lowering"], "compile_s": None}
    kept["environment"] = {**kept["environment"], "time": None, "spent_s": None}
    return kept


def check_visible(place: Path, finished: dict[str, str]) -> None:
    """Nothing half-written is seen under its name.  finished: what an unbroken run leaves"""
    for path in (place / "store").rglob(stages.MANIFEST):
        if path.relative_to(place / "store").parts[0] not in OUR_OWN:
            assert stages.damage(path.parent) is None
    for path in (place / "results").rglob("*.json"):
        if is_unfinished(path):
            continue
        if "attempts" in path.parts:
            assert json.loads(path.read_text(encoding="utf-8"))["recipe"]
        else:
            record.read(path)
    found = left(place)
    for folder in FOLDERS:
        for there in (found, finished):
            if not (place / folder).exists():
                continue
            names = {name for name in there if name.startswith(f"{folder}/")}
            assert {n: found.get(n) for n in names} == {n: finished.get(n) for n in names}


def check_tidy(place: Path) -> None:
    """No unfinished file or folder is left, and no lock, once somebody has written next to it: a
    process that is killed when its folder has its name leaves an empty one, for the next to sweep.
    """
    writing.write_text(place / "next", "")
    assert [str(path) for path in place.rglob(".trinity-*")] == []
    for name in ("locks", "scratch", "replaced"):
        if (place / "store" / name).exists():
            assert list((place / "store" / name).iterdir()) == []
