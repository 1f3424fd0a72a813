"""Does the parts of a graph in their order, on whatever executor, and says how each ended."""

import heapq
import queue
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from trinity.harness.store.spent import NOTHING, Seconds, together
from trinity.harness.sweeps.graph import Graph, Part
from trinity.harness.sweeps.worker import Failure, Outcome, Work, failure_of
from trinity.methods.errors import MachineError


@dataclass(frozen=True)
class Needs:
    """What a part takes.  memory: bytes   is_alone: nothing may run beside it"""

    memory: int
    is_alone: bool = False


class Executor(Protocol):
    """Where parts are done: processes of this machine, or a cluster."""

    at_once: int

    @property
    def has_room(self) -> bool:
        """Whether any part could be started."""
        ...

    def start(self, work: Work, needs: Needs) -> "Future[Outcome] | None":
        """Begin a part; None where there is no room for it now."""
        ...

    def failure(self, error: BaseException) -> str | None:
        """What to say of a part that did not come back; None where it is no doing of this one."""
        ...


class Watcher(Protocol):
    """Is told what happens."""

    def begun(self, part: Part) -> None:
        """A part runs, or waits for a machine."""
        ...

    def ended(self, part: Part, outcome: Outcome) -> None:
        """It is over."""
        ...


@dataclass(frozen=True)
class Places:
    """Whole paths.  folder: to work in   store: of stages   out: of results"""

    folder: Path
    store: Path
    out: Path


@dataclass
class Done:
    """How the parts ended, by key.

    left: parts that were not tried, with the key of the failed part that they needed
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, Failure]:
        """Of the parts that failed."""
        ended = self.outcomes.items()
        return {key: outcome.failure for key, outcome in ended if outcome.failure}


def run(
    graph: Graph,
    needs: Mapping[str, Needs],
    executor: Executor,
    places: Places,
    watcher: Watcher,
    refused: Mapping[str, Failure],
) -> Done:
    """Do every part whose needs are met; a failed part leaves out those that need it, and no other.

    needs: by key   refused: parts that are known to fail, and why
    """
    return _Running(graph, needs, executor, places, watcher).run(refused)


class _Running:
    def __init__(
        self,
        graph: Graph,
        needs: Mapping[str, Needs],
        executor: Executor,
        places: Places,
        watcher: Watcher,
    ) -> None:
        self.graph, self.needs, self.executor = graph, needs, executor
        self.places, self.watcher = places, watcher
        self.keys = list(graph)
        self.order = {key: number for number, key in enumerate(graph)}
        self.waiting = {key: set(part.needs) for key, part in graph.items()}
        self.after: dict[str, list[str]] = {key: [] for key in graph}
        for key, part in graph.items():
            for before in part.needs:
                self.after[before].append(key)
        # By their numbers, the least first: a run is finished before the next begins, if it can be.
        self.ready = [self.order[key] for key, before in self.waiting.items() if not before]
        self.running: dict[str, Future[Outcome]] = {}
        self.ended: queue.SimpleQueue[tuple[str, Future[Outcome]]] = queue.SimpleQueue()
        self.spent: dict[str, Mapping[str, Seconds]] = {}  # by the run that a part is accounted to
        self.done = Done()

    def run(self, refused: Mapping[str, Failure]) -> Done:
        for key, failure in refused.items():
            self._end(key, Outcome(0.0, failure=failure))
        while self.running or self.ready:
            self._start_what_fits()
            assert self.running  # an executor that does nothing takes any part
            key, future = self.ended.get()
            del self.running[key]
            self._end(key, self._outcome(future))
        return self.done

    def _start_what_fits(self) -> None:
        unfit = []
        # Where a part has ended, what follows it comes first, and is ready once that is noticed.
        while self.ready and self.executor.has_room and not self._has_ended():
            number = heapq.heappop(self.ready)
            key = self.keys[number]
            if key in self.done.outcomes or key in self.done.left:  # refused beforehand
                continue
            part = self.graph[key]
            future = self.executor.start(self._work(part), self.needs[key])
            if future is None:
                unfit.append(number)
                continue
            self.running[key] = future
            self.watcher.begun(part)
            future.add_done_callback(partial(self._tell, key))
        for number in unfit:
            heapq.heappush(self.ready, number)

    def _has_ended(self) -> bool:
        return any(future.done() for future in self.running.values())

    def _tell(self, key: str, future: "Future[Outcome]") -> None:
        """In whichever thread a part ends."""
        self.ended.put((key, future))

    def _work(self, part: Part) -> Work:
        at = self.places
        earlier = self.spent.get(part.runs[0], NOTHING) if part.kind == "record" else NOTHING
        return Work(part.kind, part.recipe, at.folder, at.store, at.out, earlier)

    def _outcome(self, future: "Future[Outcome]") -> Outcome:
        error = future.exception()
        if error is None:
            return future.result()
        reason = self.executor.failure(error)
        if reason is None:
            return Outcome(0.0, failure=failure_of(error))
        return Outcome(0.0, failure=Failure(reason, MachineError.exit_code))

    def _end(self, key: str, outcome: Outcome) -> None:
        part = self.graph[key]
        self.done.outcomes[key] = outcome
        owner = part.runs[0]
        self.spent[owner] = together(self.spent.get(owner, NOTHING), outcome.spent)
        self.watcher.ended(part, outcome)
        if outcome.failure:
            self._leave_out(key)
            return
        for after in self.after[key]:
            self.waiting[after].discard(key)
            if not self.waiting[after] and after not in self.done.left:
                heapq.heappush(self.ready, self.order[after])

    def _leave_out(self, failed: str) -> None:
        """All that needs a failed part, and what needs that."""
        going = list(self.after[failed])
        while going:
            key = going.pop()
            if key not in self.done.left and key not in self.done.outcomes:
                self.done.left[key] = failed
                going += self.after[key]
