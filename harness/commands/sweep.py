"""`trinity sweep`: many runs as one command."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import (
    Debug,
    Json,
    Out,
    Quiet,
    Ray,
    Slurm,
    Threads,
    set_threads,
    show_grid,
    start,
    store,
)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep in YAML.")],
    out: Out = Path("results"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will take, and do nothing.")
    ] = False,
    threads: Threads = None,
    ray: Ray = None,
    slurm: Slurm = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run models x recipes x seeds x targets: what they share once, and several parts at once."""
    from trinity.harness.recipes import sweep as sweeps
    from trinity.harness.runs import requests
    from trinity.harness.store.writing import check_writable
    from trinity.harness.sweeps.cluster import Cluster

    runs = sweeps.read(file)
    cluster = Cluster.named(ray, slurm)
    set_threads(threads)
    for each in runs:
        requests.check(each)
    check_writable(out)
    # Loads torch and transformers: after what can be wrong without them.
    from trinity.harness.sweeps.sweeping import Sweeping

    with start(quiet) as reporter, Sweeping(cluster, out, store(), reporter) as sweeping:
        planned = sweeping.plan(runs)
        if dry_run:
            at_once = sweeping.pool.at_once
            show_grid(planned.data(at_once), as_json, planned.grid(at_once))
            return
        ended = sweeping.run(planned)
    show_grid(ended.data(), as_json, ended.grid())
    ended.check()
