"""What the scheduler costs: sweeps of simulated parts, which do nothing, on each executor.

python benchmarks/sweep_overhead.py --parts 10000 --on local
python benchmarks/sweep_overhead.py --parts 10000 --on ray --nodes 4
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from trinity.harness.recipes import recipe
from trinity.harness.sweeps import graph, schedule
from trinity.harness.sweeps.graph import Graph, Part
from trinity.harness.sweeps.local_pool import LocalPool
from trinity.harness.sweeps.schedule import Needs, Places
from trinity.harness.sweeps.worker import Outcome, Work

PARTS_OF_A_RUN = 5  # compress, lower, evaluate, bench, record
RECIPE: dict[str, Any] = {
    "model": {"id": "random:tiny-llama"},
    "compress": {"steps": [{"method": "wanda"}]},
    "calibration": {"dataset": "pydoc"},
    "lower": {"target": "llvm-cpu"},
    "evaluate": {"suites": ["perplexity-pydoc"]},
    "bench": {"suites": ["decode"]},
}


class Watching:
    """Looks at nothing."""

    def begun(self, part: Part) -> None:
        """A part runs."""

    def ended(self, part: Part, outcome: Outcome) -> None:
        """It is over."""


def nothing(work: Work) -> Outcome:
    """A simulated part."""
    return Outcome(0.0)


def made(parts: int) -> Graph:
    """The parts of as many runs as that takes, each with a seed of its own."""
    runs = [
        recipe.parse(
            {**RECIPE, "name": f"run-{n}", "calibration": {"dataset": "pydoc", "seed": n}}, "sweep"
        )
        for n in range(parts // PARTS_OF_A_RUN)
    ]
    return graph.of_runs(runs)


@contextmanager
def ray_pool(nodes: int, do: Callable[[Work], Outcome]) -> Iterator[schedule.Executor]:
    """A Ray cluster of so many nodes with one processor each, all of them here."""
    from ray.cluster_utils import Cluster

    from trinity.harness.sweeps.ray_pool import RayPool

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    try:
        with RayPool(cluster.address, 1, do) as pool:
            yield pool
    finally:
        cluster.shutdown()


def main() -> None:
    """Print seconds of each step, and of a part."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--parts", type=int, default=10_000)
    asked.add_argument("--on", choices=("local", "ray"), default="local")
    asked.add_argument("--nodes", type=int, default=2, help="processes, or nodes of Ray")
    given = asked.parse_args()
    start = time.perf_counter()
    found = made(given.parts)
    print(f"graph of {len(found)} parts: {time.perf_counter() - start:.2f} s")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        places = Places(here, here / "store", here / "out")
        pool: AbstractContextManager[schedule.Executor]
        if given.on == "ray":
            pool = ray_pool(given.nodes, nothing)
        else:
            pool = LocalPool(given.nodes, 10**12, do=nothing)
        needs = {key: Needs(0) for key in found}
        with pool as executor:
            warm = made(PARTS_OF_A_RUN * given.nodes)
            schedule.run(warm, {key: Needs(0) for key in warm}, executor, places, Watching(), {})
            start, used = time.perf_counter(), time.process_time()
            done = schedule.run(found, needs, executor, places, Watching(), {})
            took, worked = time.perf_counter() - start, time.process_time() - used
    assert len(done.outcomes) == len(found)
    assert not done.failures
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{len(found)} parts on {given.on}, {given.nodes} at once: {took:.2f} s, "
        f"{1000 * took / len(found):.2f} ms a part, of which {1000 * worked / len(found):.2f} ms "
        f"are work of the scheduler's process; {peak:.0f} MiB at its peak"
    )


if __name__ == "__main__":
    main()
