"""A sweep from its runs to its end: plan, do, tell."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trinity.harness.recipes.recipe import Recipe
from trinity.harness.store.stages import StageStore
from trinity.harness.sweeps import graph, plan, schedule
from trinity.harness.sweeps.cluster import Cluster
from trinity.harness.sweeps.ended import Ended
from trinity.harness.sweeps.plan import Plan
from trinity.harness.sweeps.schedule import Places
from trinity.harness.sweeps.view import View
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import MachineError

if TYPE_CHECKING:
    from trinity.harness.sweeps.local_pool import LocalPool
    from trinity.harness.sweeps.ray_pool import RayPool
    from trinity.harness.sweeps.slurm_pool import SlurmPool

EXTRA = "pip install 'compression-trinity[{}]'"


class Sweeping:
    """Runs on a pool of processes here, or on a cluster.  Use it in a `with`."""

    def __init__(
        self, cluster: Cluster | None, out: Path, store: StageStore, reporter: Reporter
    ) -> None:
        """cluster: None for this machine   out: of results"""
        self.out, self.store, self.reporter = out, store, reporter
        self.places = Places(Path.cwd(), store.root, out.absolute())
        self.pool = _pool(cluster, self.places)

    def __enter__(self) -> "Sweeping":
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what runs."""
        self.pool.__exit__()

    def plan(self, runs: Sequence[Recipe]) -> Plan:
        """What they will take."""
        return plan.of_graph(graph.of_runs(runs), self.out, self.store, self.reporter)

    def run(self, planned: Plan) -> Ended:
        """Do all parts that can be done."""
        parts, view = planned.graph, View(planned, self.pool.at_once, self.reporter)
        done = schedule.run(parts, planned.needs(), self.pool, self.places, view, planned.refused)
        return Ended(parts, done)


def _pool(cluster: Cluster | None, places: Places) -> "LocalPool | RayPool | SlurmPool":
    # Imported here: they load torch, whose variables are set by then.
    import torch

    from trinity.harness.sweeps import local_pool

    if cluster is None:
        return local_pool.of_this_machine()
    threads = torch.get_num_threads()
    try:  # optional extras
        if cluster.kind == "slurm":
            from trinity.harness.sweeps.slurm_pool import SlurmPool

            return SlurmPool(cluster.named_by, threads, places)
        from trinity.harness.sweeps.ray_pool import RayPool
    except ImportError as error:
        needed = EXTRA.format(cluster.kind)
        msg = f"--{cluster.kind} needs the package {error.name}, which is missing. Run {needed}."
        raise MachineError(msg) from error
    found = RayPool(cluster.named_by, threads)
    found.check(places)
    return found
