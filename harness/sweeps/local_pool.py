"""Parts of runs on this machine: a process a slot, as many slots as threads fit its processors.

A slot is a pool of one process, so that a process that is killed costs its own part only.
"""

import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.context import BaseContext

from trinity.harness.latency import machine
from trinity.harness.records import available
from trinity.harness.sweeps import worker
from trinity.harness.sweeps.schedule import Needs
from trinity.harness.sweeps.worker import Outcome, Work

PATIENCE_S = 10.0  # in which a part that is told to stop has stopped
KILLED = (
    "its process was killed: the system does that where memory is short. Set --threads higher, so "
    "that fewer parts run at once, or make the part smaller (`trinity sweep --dry-run` says what "
    "it takes)"
)


@dataclass(eq=False)
class _Slot:
    """A process, made when it is first needed.  taken: memory of the part that it does, in bytes"""

    variables: Mapping[str, str]
    pool: ProcessPoolExecutor | None = None
    process: int = 0
    doing: "Future[Outcome]" = field(default_factory=Future)
    taken: int = 0
    is_alone: bool = False

    def start(self, do: Callable[[Work], Outcome], work: Work, needs: Needs) -> "Future[Outcome]":
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, _context(), worker.begin, (self.variables,))
            self.process = self.pool.submit(os.getpid).result()
        self.taken, self.is_alone = needs.memory, needs.is_alone
        self.doing = self.pool.submit(do, work)
        return self.doing

    @property
    def is_busy(self) -> bool:
        return self.pool is not None and not self.doing.done()


class LocalPool:
    """Runs parts in processes of this machine.  Use it in a `with`: what still runs at its end is
    stopped, as by Ctrl-C.
    """

    def __init__(
        self,
        at_once: int,
        memory: int,
        *,
        gpus: int = 0,
        do: Callable[[Work], Outcome] = worker.do,
    ) -> None:
        """at_once: parts   memory: bytes that all of them may take together

        gpus: each slot has one to itself; 0 without
        do: what a process does with a part
        """
        self.at_once, self.memory, self.do = gpus or at_once, memory, do
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        seen = named.split(",") if named else [str(number) for number in range(gpus)]
        # A process is forked from one that may be older than the variables of today.
        self._slots = [
            _Slot({**os.environ, **({"CUDA_VISIBLE_DEVICES": seen[number]} if gpus else {})})
            for number in range(self.at_once)
        ]

    def __enter__(self) -> "LocalPool":
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what runs: told to, then by force, which stages of the store bear."""
        busy = [slot for slot in self._slots if slot.is_busy]
        _signal(busy, signal.SIGTERM)
        try:
            wait([slot.doing for slot in busy], PATIENCE_S)
        finally:  # a second Ctrl-C has less patience
            _signal([slot for slot in busy if slot.is_busy], signal.SIGKILL)
            for slot in self._slots:
                if slot.pool is not None:
                    slot.pool.shutdown(cancel_futures=True)

    @property
    def has_room(self) -> bool:
        """Whether any part could be started."""
        busy = [slot for slot in self._slots if slot.is_busy]
        return len(busy) < self.at_once and not any(slot.is_alone for slot in busy)

    def start(self, work: Work, needs: Needs) -> "Future[Outcome] | None":
        """Begin a part; None where there is no room for it now."""
        busy = [slot for slot in self._slots if slot.is_busy]
        taken = sum(slot.taken for slot in busy)
        # One that is too large for what is free may try it when nobody is beside it.
        if busy and (needs.is_alone or taken + needs.memory > self.memory):
            return None
        free = next(slot for slot in self._slots if not slot.is_busy)
        try:
            return free.start(self.do, work, needs)
        except BrokenProcessPool:
            free.pool = None  # it was killed with the part before, whose failure is told already
            return free.start(self.do, work, needs)

    def failure(self, error: BaseException) -> str | None:
        """What to say of a part that did not come back; None where it is no doing of this pool."""
        return KILLED if isinstance(error, BrokenProcessPool) else None


def of_this_machine() -> LocalPool:
    """As many parts at once as their threads fit the processors, or one for every GPU."""
    import torch  # here: a pool of processes that compute nothing does without

    at_once = max(1, machine.usable_cpus() // torch.get_num_threads())
    return LocalPool(at_once, available.available_bytes(), gpus=torch.cuda.device_count())


def _context() -> BaseContext:
    """Processes are forked from one that has loaded what runs a model, and has done nothing."""
    found = get_context("forkserver")
    found.set_forkserver_preload(["trinity.harness.runs.run"])
    return found


def _signal(slots: list[_Slot], number: signal.Signals) -> None:
    for slot in slots:
        try:
            os.kill(slot.process, number)
        except ProcessLookupError:
            continue
