"""Parts of runs as jobs of SLURM, which chooses when and where each is done.

submitit writes the batch files, and hands parts over and outcomes back through pickled files in
`slurm/` of the stage store.  The store, the results and the folder to work in are on a file system
that all machines share.  A job that reaches its time limit asks to be queued again, and goes on
from the store.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import submitit
from submitit.core.utils import (
    DelayedSubmission,
    FailedJobError,
    FailedSubmissionError,
    UncompletedJobError,
)

from trinity.harness.runs.memory_plan import WITHIN
from trinity.harness.sweeps import same_kind, worker
from trinity.harness.sweeps.schedule import Needs, Places
from trinity.harness.sweeps.worker import Outcome, Work
from trinity.harness.terminal.hush import hush_libraries
from trinity.methods.errors import ConfigError, MachineError

POLL_S = 2.0  # between two looks at all jobs: files of outcomes, and now and then `sacct`
RETRIES = 3  # of a part whose machine is gone
TIME_LIMITS = 20  # that a part may reach before it is given up
LOST = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED")  # as SLURM calls it, no doing of the part
AT_ONCE = 100  # jobs that are queued or run, unless `at_once` says otherwise
EXAMPLE = "'timeout_min=240,partition=NAME'"


class SlurmPool:
    """Runs parts as jobs.  Use it in a `with`: what is queued or runs at its end is cancelled."""

    def __init__(
        self,
        options: str,
        threads: int,
        places: Places,
        *,
        do: Callable[[Work], Outcome] = worker.do,
        kind_of: Callable[[Places], str] = same_kind.kind_of,
    ) -> None:
        """options: of `--slurm`   threads: of a part

        do: what is done with a part   kind_of: of a machine, which must be the same for all

        ConfigError where the options are none of submitit's; MachineError where SLURM is not here.
        """
        self.places, self.do, self.kind_of = places, do, kind_of
        asked = parsed(options)
        self.at_once: int = asked.pop("at_once", AT_ONCE)
        try:
            self._executor = submitit.SlurmExecutor(places.store / "slurm", TIME_LIMITS)
            named = {"time" if k == "timeout_min" else k: v for k, v in asked.items()}
            self._executor.update_parameters(cpus_per_task=threads, **named)
        except RuntimeError as error:
            msg = "--slurm: there is no `srun` here. Start the sweep on a machine of the cluster."
            raise MachineError(msg) from error
        except (ValueError, TypeError) as error:
            msg = f"--slurm {options}: {error}. Give for example {EXAMPLE}."
            raise ConfigError(msg) from error
        os.environ["OMP_NUM_THREADS"] = str(threads)  # jobs inherit this process's variables
        self._running: dict[Future[Outcome], _Job] = {}
        self._kind: str | None = None
        self._lock, self._over = threading.Lock(), threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "SlurmPool":
        """Nothing is submitted yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what is queued or runs."""
        self._over.set()
        if self._looking.is_alive():
            self._looking.join()
        for job in self._running.values():
            job.submitted.cancel(check=False)

    @property
    def has_room(self) -> bool:
        """Whether another job may be submitted."""
        return len(self._running) < self.at_once

    def start(self, work: Work, needs: Needs) -> "Future[Outcome]":
        """Submit a part."""
        job = _Job(work, needs, self._submit(work, needs))
        future: Future[Outcome] = Future()
        with self._lock:
            self._running[future] = job
        if not self._looking.ident:
            self._looking.start()
        return future

    def failure(self, error: BaseException) -> str | None:
        """What to say of a part that did not come back; None where SLURM did its own."""
        words = " ".join(str(error).split())[:300]
        if isinstance(error, FailedJobError):
            return None
        if isinstance(error, UncompletedJobError):
            return f"SLURM ended its job ({words})"
        return str(error) if isinstance(error, MachineError) else None

    def _submit(self, work: Work, needs: Needs) -> Any:
        # Of one that runs alone, the whole machine; of others what is planned, and what a plan may
        # be wrong by.
        mem = max(1, round(needs.memory * (1 + WITHIN) / 2**20))
        asked = {"exclusive": True, "mem": "0"} if needs.is_alone else {"mem": f"{mem}MB"}
        self._executor.parameters.pop("exclusive", None)
        self._executor.update_parameters(job_name=f"trinity-{work.kind}", **asked)
        doing = Doing(self.do, work, self.places, self.kind_of, self._kind)
        try:
            return self._executor.submit(doing)
        except (FailedJobError, FailedSubmissionError) as error:
            words = " ".join(str(error).split())[:300]
            msg = (
                f"--slurm: SLURM does not take the job of {work.kind} {work.recipe.name} ({words})."
            )
            raise MachineError(msg) from error

    def _look(self) -> None:
        """In a thread of its own, until all is over."""
        while not self._over.wait(POLL_S):
            with self._lock:
                found = list(self._running.items())
            for future, job in found:
                try:
                    if job.submitted.done():
                        self._end(future, job)
                except Exception as error:  # nobody else would ever tell of this part
                    self._over_with(future)
                    future.set_exception(error)

    def _end(self, future: "Future[Outcome]", job: "_Job") -> None:
        try:
            kind, outcome = job.submitted.result()
        except UncompletedJobError as error:
            if job.submitted.state in LOST and job.tries < RETRIES:
                job.tries += 1
                job.submitted = self._submit(job.work, job.needs)
                return
            self._over_with(future)
            future.set_exception(error)
            return
        self._over_with(future)
        self._kind = self._kind or kind
        if kind != self._kind:
            future.set_exception(MachineError(same_kind.differ("SLURM", {kind, self._kind})))
            return
        for file in job.submitted.paths.folder.glob(f"{job.submitted.job_id}_*"):
            file.unlink()
        future.set_result(outcome)

    def _over_with(self, future: "Future[Outcome]") -> None:
        with self._lock:
            self._running.pop(future, None)


@dataclass(eq=False)
class _Job:
    """A part that is queued or runs.  tries: again, after its machine was lost"""

    work: Work
    needs: Needs
    submitted: Any  # submitit's
    tries: int = 0


@dataclass(frozen=True)
class Doing:
    """What a job calls, on whichever machine.

    kind: that the machine must be of, where it is known
    """

    do: Callable[[Work], Outcome]
    work: Work
    places: Places
    kind_of: Callable[[Places], str]
    kind: str | None

    def __call__(self) -> tuple[str, Outcome]:
        """The machine's kind, and how the part ended; nothing is done on a machine of another."""
        hush_libraries()
        here = self.kind_of(self.places)
        if self.kind is not None and here != self.kind:
            return here, Outcome(0.0)
        return here, self.do(self.work)

    def checkpoint(self) -> DelayedSubmission:
        """Asked shortly before the time limit: the same again, which finds in the store what is
        finished.
        """
        return DelayedSubmission(self)


def parsed(options: str) -> dict[str, Any]:
    """'timeout_min=240,partition=gpu' as submitit's parameters; ConfigError if it is not so."""
    found: dict[str, Any] = {}
    for each in options.split(","):
        key, sign, value = each.partition("=")
        if not (key.strip() and sign and value.strip()):
            msg = f"--slurm {options}: '{each}' is no KEY=VALUE. Give for example {EXAMPLE}."
            raise ConfigError(msg)
        text = value.strip()
        found[key.strip()] = int(text) if text.isdigit() else text
    if "timeout_min" not in found:
        msg = (
            f"--slurm {options}: says no timeout_min, the minutes after which SLURM ends a job. "
            f"Give for example {EXAMPLE}."
        )
        raise ConfigError(msg)
    at_once = found.get("at_once", AT_ONCE)
    if not isinstance(at_once, int) or at_once < 1:
        msg = f"--slurm {options}: at_once is '{at_once}', and must be a number of jobs, 1 or more."
        raise ConfigError(msg)
    return found
