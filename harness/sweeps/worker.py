"""One part of a run, done by a process that is told what to do.  Loads torch with the first."""

import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType

from trinity.harness.recipes.recipe import Recipe
from trinity.harness.store import remote
from trinity.harness.store.spent import NOTHING, Seconds, since
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.hush import hush_libraries
from trinity.harness.terminal.machine_errors import of_the_machine
from trinity.harness.terminal.progress import LogLines, Reporter
from trinity.methods.errors import MachineError, TrinityError


@dataclass(frozen=True)
class Work:
    """What a process is told of a part.

    recipe: cut to the part   folder: to work in   store, out: whole paths, of stages and results
    earlier: what was spent on the run's other parts, for its record
    """

    kind: str
    recipe: Recipe
    folder: Path
    store: Path
    out: Path
    earlier: Mapping[str, Seconds] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a part was not done.

    exit_code: that a command alone would have ended with   trace: of our own mistakes
    """

    reason: str
    exit_code: int = 1
    trace: str = ""

    def as_error(self) -> TrinityError:
        """To be raised where somebody waits for the part."""
        of_machine = self.exit_code == MachineError.exit_code
        return (MachineError if of_machine else TrinityError)(self.reason)


@dataclass(frozen=True)
class Outcome:
    """How a part ended.

    seconds: of the clock   spent: by part of a run   said: lines for people
    place: of the record, of kind 'record'
    """

    seconds: float
    spent: Mapping[str, Seconds] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    place: str = ""
    failure: Failure | None = None


def begin(variables: Mapping[str, str]) -> None:
    """Before a process of ours works: variables, which are read with the first part, and signals.

    Who started it says when it ends: Ctrl-C reaches all processes of a terminal, and is for him.
    """
    os.environ |= variables
    hush_libraries()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed has nobody to work for; what it does may be lost."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def do(work: Work) -> Outcome:
    """Do a part; a failure is told and not raised."""
    start = time.perf_counter()
    reporter = _Kept()
    logging.basicConfig(level=logging.WARNING, handlers=[LogLines(reporter)], force=True)
    spent: Mapping[str, Seconds] = NOTHING
    place, failure = "", None
    try:
        os.chdir(work.folder)
        store = _store(work.store)
        before = store.spent.parts()
        place = _do(work, store, reporter)
        spent = since(before, store.spent.parts())
    except Exception as error:
        failure = failure_of(error)
    return Outcome(time.perf_counter() - start, spent, tuple(reporter.lines), place, failure)


def failure_of(error: BaseException) -> Failure:
    """An expected error in its own words, another with its trace."""
    expected = of_the_machine(error)
    if isinstance(expected, TrinityError):
        return Failure(str(expected), expected.exit_code)
    trace = "".join(traceback.format_exception(error))
    return Failure(f"{type(error).__name__}: {error}", trace=trace)


def _do(work: Work, store: StageStore, reporter: Reporter) -> str:
    """The path of the record, of kind 'record'."""
    # Imported here: they load torch, which reads its variables then.
    from trinity.harness.records import available, record
    from trinity.harness.runs.attempts import attempt
    from trinity.harness.runs.run import Run

    recipe = work.recipe
    with attempt(recipe, work.out, store):
        run = Run(recipe, store, reporter)
        if work.kind == "record":
            return str(record.write(run.finish(work.earlier).record, work.out))
        run.compress()
        if work.kind == "lower":
            run.make_measuring().lower()
        elif work.kind == "evaluate":
            assert recipe.evaluate is not None
            run.make_measuring().evaluate(recipe.evaluate)
        elif work.kind == "bench":
            assert recipe.bench is not None
            run.make_measuring().bench(recipe.bench, recipe.engines)
    del run
    available.give_back()  # the next part may need it elsewhere
    return ""


@cache
def _store(root: Path) -> StageStore:
    """One for all parts of this process: what it has read and found whole is not hashed again."""
    return StageStore(root, behind=remote.of_environment())


class _Kept(Reporter):
    """Keeps lines for whoever asked for the part."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """As `write`: who asked says when."""
        self.write(text)

    def write(self, line: str) -> None:
        """One line."""
        self.lines.append(line)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
