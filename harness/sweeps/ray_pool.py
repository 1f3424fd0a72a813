"""Parts of runs on the machines of a Ray cluster, which chooses where each is done.

The store, the results and the folder to work in are on a file system that all machines share.
"""

import logging
import os
import signal
import socket
from collections.abc import Callable
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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trinity.harness.sweeps import worker
from trinity.harness.sweeps.same_kind import differ, kind_of
from trinity.harness.sweeps.schedule import Needs, Places
from trinity.harness.sweeps.worker import Outcome, Work
from trinity.harness.terminal.hush import hush_libraries
from trinity.methods.errors import MachineError

RETRIES = 3  # of a part whose machine or process is gone; what it had finished is in the store
ANSWER_S = 10.0
LOST = (NodeDiedError, OutOfMemoryError, TaskCancelledError, WorkerCrashedError)
# What decides where things lie and how much they use is the same on every machine.
PASSED_ON = ("TRINITY_", "HF_", "MKL_NUM_THREADS")


class RayPool:
    """Runs parts on a cluster.  Use it in a `with`: what still runs at its end is cancelled."""

    has_room = True  # Ray keeps what does not fit yet, also for machines that come later

    def __init__(
        self, address: str, threads: int, do: Callable[[Work], Outcome] = worker.do
    ) -> None:
        """address: as of `ray.init`: 'auto', or HOST:PORT   threads: of a part

        do: what is done with a part.  MachineError where there is no such cluster, or it has no
        machine for so many threads.
        """
        self.threads, self._what = threads, do
        variables = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        variables["OMP_NUM_THREADS"] = str(threads)  # Ray's own choice is another
        _join(address, variables)
        self._do = ray.remote(_done_by)
        self._running: dict[Future[Outcome], Any] = {}
        alive = [found for found in ray.nodes() if found["Alive"]]
        self._machines = {found["NodeID"]: found["Resources"] for found in alive}
        self._memory = max(int(of.get("memory", 0)) for of in self._machines.values())
        self._gpus = int(any(of.get("GPU") for of in self._machines.values()))
        processors = [int(of.get("CPU", 0)) for of in self._machines.values()]
        # A part that runs alone takes a whole machine, of those with the most processors.
        self._most = max(processors)
        self.at_once = max(1, sum(count // threads for count in processors))
        if self._most < threads:
            ray.shutdown()
            msg = (
                f"--threads {threads}: the largest machine of the Ray cluster gives {self._most} "
                f"processors. Use fewer threads."
            )
            raise MachineError(msg)

    def __enter__(self) -> "RayPool":
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel what runs, and leave the cluster."""
        for ref in list(self._running.values()):
            ray.cancel(ref)
        ray.shutdown()

    def check(self, places: Places) -> None:
        """MachineError where machines lack the shared folders, or would get other numbers."""
        kinds: dict[str, str] = {}
        asked = ray.remote(kind_of)
        for node, resources in self._machines.items():
            if resources.get("CPU", 0) >= self.threads:
                here = NodeAffinitySchedulingStrategy(node, soft=False)
                options = {"scheduling_strategy": here, "num_cpus": self.threads}
                kinds[node] = ray.get(asked.options(**options).remote(places))
        if len(set(kinds.values())) > 1:
            raise MachineError(differ("the Ray cluster", set(kinds.values())))

    def start(self, work: Work, needs: Needs) -> "Future[Outcome]":
        """Hand a part to the cluster."""
        options: dict[str, Any] = {
            "num_cpus": self._most if needs.is_alone else self.threads,
            "num_gpus": self._gpus,
            # One that is too large for the largest machine may try it there.
            "memory": min(needs.memory, self._memory),
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
        words = " ".join(str(error).split())[:300]
        if isinstance(error, LOST):
            return f"its machine or process was lost, and {RETRIES} times again ({words})"
        if isinstance(error, RayTaskError) or not isinstance(error, RayError):
            return None
        return f"the Ray cluster did not do it ({words})"


def _join(address: str, variables: dict[str, str]) -> None:
    """Make this process one of a cluster's.  variables: of the processes that work for it"""
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        host, separator, port = address.rpartition(":")
        if separator:  # Ray itself waits for minutes, and then ends the process
            socket.create_connection((host, int(port)), ANSWER_S).close()
        ray.init(
            address=address,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (OSError, RuntimeError, ValueError) as error:
        msg = (
            f"--ray {address}: no Ray cluster answers there ({error}). Start one: `ray start "
            f"--head` on one machine, `ray start --address HOST:PORT` on the others."
        )
        raise MachineError(msg) from error
    finally:
        signal.signal(signal.SIGTERM, on_term)  # Ray has its own, with another exit code


def _done_by(do: Callable[[Work], Outcome], work: Work) -> Outcome:
    """On a machine of the cluster."""
    hush_libraries()
    return do(work)
