"""`trinity sweep`: many runs as one command."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Out, Quiet, show_grid, start, store
from trinity.methods.errors import MachineError

if TYPE_CHECKING:
    from trinity.harness.sweeps.local_pool import LocalPool
    from trinity.harness.sweeps.ray_pool import RayPool
    from trinity.harness.sweeps.schedule import Places

EXTRA = "pip install 'compression-trinity[ray]'"


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep in YAML.")],
    out: Out = Path("results"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will take, and do nothing.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of each part; as many parts run at once as threads fit the processors. Unless "
            "told, a part has all of them, as `trinity run` has.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="A Ray cluster, 'auto' or HOST:PORT, for this machine."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run models x recipes x seeds x targets: what they share once, and several parts at once."""
    from trinity.harness.recipes import sweep as sweeps
    from trinity.harness.runs import requests
    from trinity.harness.store.writing import check_writable

    runs = sweeps.read(file)
    if threads is not None:  # read once by torch, in this process and in those that it starts
        os.environ["OMP_NUM_THREADS"] = str(threads)
    for each in runs:
        requests.check(each)
    check_writable(out)
    # Loads torch and transformers: after what can be wrong without them.
    from trinity.harness.sweeps import graph, plan, schedule
    from trinity.harness.sweeps.ended import Ended
    from trinity.harness.sweeps.view import View

    stages = store()
    places = schedule.Places(Path.cwd(), stages.root, out.absolute())
    with start(quiet) as reporter, _pool(ray, places) as pool:
        planned = plan.of_graph(graph.of_runs(runs), out, stages, reporter)
        if dry_run:
            show_grid(planned.data(pool.at_once), as_json, planned.grid(pool.at_once))
            return
        view = View(planned, pool.at_once, reporter)
        done = schedule.run(planned.graph, planned.needs(), pool, places, view, planned.refused)
    ended = Ended(planned.graph, done)
    show_grid(ended.data(), as_json, ended.grid())
    ended.check()


def _pool(ray: str | None, places: "Places") -> "LocalPool | RayPool":
    """Who does the parts: processes here, or the machines of a cluster."""
    import torch

    from trinity.harness.sweeps import local_pool

    if ray is None:
        return local_pool.of_this_machine()
    try:
        from trinity.harness.sweeps import ray_pool  # an optional extra
    except ImportError as error:
        msg = f"--ray needs the package ray, which is missing. Run {EXTRA}."
        raise MachineError(msg) from error
    found = ray_pool.RayPool(ray, torch.get_num_threads())
    found.check(places)
    return found
