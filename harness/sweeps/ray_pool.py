"""Parts of runs on the machines of a Ray cluster, which chooses where each is done.

The store, the results and the folder to work in are on a file system that all machines share.
"""

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)

from trinity.harness.sweeps import worker
from trinity.harness.sweeps.schedule import Needs
from trinity.harness.sweeps.worker import Outcome, Work
from trinity.methods.errors import MachineError

RETRIES = 3  # of a part whose machine or process is gone; what it had finished is in the store
LOST = (NodeDiedError, OutOfMemoryError, TaskCancelledError, WorkerCrashedError)
# What decides where things lie and how much they use is the same on every machine.
PASSED_ON = ("TRINITY_", "HF_", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class RayPool:
    """Runs parts on a cluster.  Use it in a `with`: what still runs at its end is cancelled."""

    def __init__(
        self,
        address: str,
        threads: int,
        *,
        gpus: int = 0,
        do: Callable[[Work], Outcome] = worker.do,
    ) -> None:
        """address: as of `ray.init`: 'auto', or HOST:PORT   threads: of a part

        gpus: of a part   do: what is done with a part.  MachineError if there is no such cluster,
        or none of its machines has what a part needs.
        """
        self.threads, self.gpus = threads, gpus
        variables = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        variables["OMP_NUM_THREADS"] = str(threads)  # Ray's own choice is another
        try:
            ray.init(
                address=address,
                runtime_env={"env_vars": variables},
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            msg = (
                f"--ray {address}: no Ray cluster answers there ({error}). Start one: `ray start "
                f"--head` on one machine, `ray start --address HOST:PORT` on the others."
            )
            raise MachineError(msg) from error
        self._do = ray.remote(_done_by)
        self._what = do
        self._running: dict[Future[Outcome], ray.ObjectRef[Outcome]] = {}
        self._machines = [found["Resources"] for found in ray.nodes() if found["Alive"]]
        # A part that runs alone takes all of a machine: of those with the most processors, so that
        # no other part fits beside it.
        self._most = max(int(found.get("CPU", 0)) for found in self._machines)
        of_each = (int(found.get("CPU", 0)) // threads for found in self._machines)
        self.at_once = max(1, sum(of_each))
        self._check_threads()

    def _check_threads(self) -> None:
        if self._most < self.threads:
            ray.shutdown()
            msg = (
                f"--threads {self.threads}: the largest machine of the Ray cluster gives "
                f"{self._most} processors. Use fewer threads."
            )
            raise MachineError(msg)

    def __enter__(self) -> "RayPool":
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what runs, and leave the cluster."""
        for future, ref in self._running.items():
            if not future.done():
                ray.cancel(ref)
        ray.shutdown()

    has_room = True  # Ray keeps what does not fit yet, and gives it to machines that come later

    def start(self, work: Work, needs: Needs) -> "Future[Outcome]":
        """Hand a part to the cluster."""
        options: dict[str, Any] = {
            "num_cpus": self._most if needs.is_alone else self.threads,
            "num_gpus": self.gpus,
            "memory": self._memory(needs),
            "max_retries": RETRIES,
            "name": f"{work.kind} {work.recipe.name}",
        }
        ref = self._do.options(**options).remote(self._what, work)
        future: Future[Outcome] = ref.future()
        self._running[future] = ref
        future.add_done_callback(self._running.pop)
        return future

    def failure(self, error: BaseException) -> str | None:
        """What to say of a part that did not come back; None where the cluster did its own."""
        if isinstance(error, LOST):
            words = " ".join(str(error).split())[:300]
            return f"its machine or process was lost, and {RETRIES} times again ({words})"
        if isinstance(error, RayTaskError) or not isinstance(error, RayError):
            return None
        return f"the Ray cluster did not do it ({' '.join(str(error).split())[:300]})"

    def _memory(self, needs: Needs) -> int:
        """Bytes, no more than the largest machine gives: `trinity run` would try it there too."""
        return min(needs.memory, max(int(found.get("memory", 0)) for found in self._machines))


def _done_by(do: Callable[[Work], Outcome], work: Work) -> Outcome:
    """On a machine of the cluster."""
    return do(work)


def machines() -> list[Mapping[str, Any]]:
    """What Ray says of every machine."""
    found: list[Mapping[str, Any]] = ray.nodes()
    return found
