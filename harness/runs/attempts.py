"""What every run cost, also of those that failed or were killed: one small file each.

The file is there from the start and is kept up while the run goes on, so that a killed run has left
its last state: what it says it took is then the least that it took.
"""

import logging
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trinity.harness.recipes.recipe import Recipe
from trinity.harness.records.environment import machine_name
from trinity.harness.store.stages import StageStore, as_json, read_json
from trinity.harness.store.writing import write_text, writing
from trinity.methods.errors import MachineError, RecordError

log = logging.getLogger(__name__)

FOLDER = "attempts"
EVERY_S = 30.0  # how often the file is written again
NEGLIGIBLE_S = 10.0  # of a run that computed nothing: it was refused, or all was in the store
Status = Literal["running", "finished", "failed", "interrupted"]


class Attempt(BaseModel):
    """One run.

    status: 'running' of a killed run too   reason: of 'failed'
    cpu_s: of all threads and child processes   peak_memory_bytes: resident, of the whole process
    stages: that it computed; the others were in the store
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    model: str
    machine: str
    started: str
    status: Status = "running"
    reason: str = ""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    stages: int = 0


@contextmanager
def attempt(recipe: Recipe, results: Path, store: StageStore) -> Iterator[None]:
    """Keep what a run costs in `results/attempts`; nothing of one that computed nothing."""
    started = datetime.now(UTC)
    name = f"{started:%Y-%m-%dT%H%M%S%f}-{os.getpid()}.json"
    first = Attempt(
        recipe=recipe.name,
        model=recipe.model.id,
        machine=machine_name(),
        started=started.isoformat(timespec="seconds"),
    )
    watch = _Watch(first, results / FOLDER / name, store)
    try:
        yield
    except KeyboardInterrupt:
        watch.end("interrupted")
        raise
    except BaseException as error:
        watch.end("failed", f"{type(error).__name__}: {error}"[:500])
        raise
    watch.end("finished")


class _Watch:
    """Writes one attempt now, every half minute, and at its end."""

    def __init__(self, first: Attempt, path: Path, store: StageStore) -> None:
        self.first, self.path, self.store = first, path, store
        self.start_s, self.start_cpu_s, self.made = time.monotonic(), _cpu_s(), store.made
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.write("running", "")
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._keep_up, daemon=True)
        self.thread.start()

    def end(self, status: Status, reason: str = "") -> None:
        """The last state; no file of a run that cost nothing."""
        self.over.set()
        self.thread.join()
        took = time.monotonic() - self.start_s
        with _never_fatal(self.path):
            if self.store.made == self.made and took < NEGLIGIBLE_S:
                self.path.unlink(missing_ok=True)
                if not any(self.path.parent.iterdir()):
                    self.path.parent.rmdir()
            else:
                self.write(status, reason)

    def write(self, status: Status, reason: str) -> None:
        """The state now."""
        now = {
            "status": status,
            "reason": reason,
            "wall_s": round(time.monotonic() - self.start_s, 1),
            "cpu_s": round(_cpu_s() - self.start_cpu_s, 1),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "stages": self.store.made - self.made,
        }
        write_text(self.path, as_json(self.first.model_copy(update=now).model_dump(mode="json")))

    def _keep_up(self) -> None:
        while not self.over.wait(EVERY_S):
            with _never_fatal(self.path):
                self.write("running", "")


@contextmanager
def _never_fatal(path: Path) -> Iterator[None]:
    """What a run made is not lost, and its own error not hidden, because the account of it could
    not be kept.
    """
    try:
        with writing(path.parent):
            yield
    except (OSError, MachineError) as error:
        log.warning("%s: what this run cost is not kept: %s", path, error)


def read_all(results: Path) -> list[Attempt]:
    """Every attempt of a results folder, the oldest first."""
    found = []
    for path in sorted((results / FOLDER).glob("*.json")):
        try:
            found.append(Attempt.model_validate(read_json(path)))
        except (OSError, ValueError, ValidationError) as error:
            msg = f"{path}: is no attempt of a run ({error}). Remove it, or get it whole."
            raise RecordError(msg) from error
    return found


def _cpu_s() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system
