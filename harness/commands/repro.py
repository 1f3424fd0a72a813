"""`trinity repro`: regenerate a paper's tables."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trinity.harness.commands.options import (
    Debug,
    Fresh,
    Json,
    Quiet,
    Ray,
    Results,
    Slurm,
    Threads,
    set_threads,
    show_tables,
    start,
    store,
)
from trinity.methods.errors import ConfigError

if TYPE_CHECKING:
    from trinity.harness.recipes.recipe import Recipe
    from trinity.harness.repro.repro import Reproduced
    from trinity.harness.repro.rows import Lost
    from trinity.harness.store.stages import StageStore
    from trinity.harness.sweeps.cluster import Cluster
    from trinity.harness.terminal.progress import Reporter


def repro(
    paper: Annotated[str, typer.Argument(help="Which paper, for example slim.")],
    table: Annotated[
        str | None,
        typer.Option(help="One table, for example table5; else those that the profile names."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="smoke, embedded, small, paper, or another that a paper has. Unless told: paper "
            "with a GPU, small where there is one and the Hugging Face hub answers, else embedded."
        ),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="Glob over row names, for example 'slim-lora*'; '*' for all of them."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Glob over the profile's models, for example '*opt-125m'.")
    ] = None,
    out: Results = None,
    threads: Threads = None,
    ray: Ray = None,
    slurm: Slurm = None,
    fresh: Fresh = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Regenerate a paper's tables.

    Rows run one after the other, or with --threads, --ray or --slurm as `trinity sweep` runs them.
    """
    from trinity.harness.repro.repro import Selection, default_out, incomplete, reproduce
    from trinity.harness.sweeps.cluster import Cluster

    cluster = Cluster.named(ray, slurm)
    at_once = threads is not None or cluster is not None
    if fresh and at_once:
        msg = (
            "--fresh makes stages again in this process alone. With --threads, --ray or --slurm, "
            "set TRINITY_CACHE to an empty folder instead."
        )
        raise ConfigError(msg)
    folder = out or default_out(profile)
    asked = Selection(table, profile, rows, model)
    results = []
    set_threads(threads)
    try:
        with start(quiet) as reporter:
            stages, beforehand = store(fresh), None
            if at_once:
                beforehand = partial(_sweep, cluster, folder, stages, reporter)
            for result in reproduce(paper, asked, folder, stages, reporter, beforehand):
                results.append(result)
    finally:
        # Whatever stops it, a failure or Ctrl-C: what is finished is shown.
        if results:
            show_tables({"tables": list(map(as_data, results))}, results, as_json)
    if lost := incomplete(results):
        raise lost


def _sweep(
    cluster: "Cluster | None",
    out: Path,
    stages: "StageStore",
    reporter: "Reporter",
    runs: "list[Recipe]",
) -> "Lost":
    """Do rows as a sweep; what says why one of them has no record."""
    from trinity.harness.sweeps.sweeping import Sweeping  # loads torch, as running rows does

    with Sweeping(cluster, out, stages, reporter) as sweeping:
        return sweeping.run(sweeping.plan(runs)).lost


def as_data(result: "Reproduced") -> dict[str, Any]:
    """A table's files, and why rows are not in it."""
    from trinity.harness.recipes.paper import recipe_name

    lost = {recipe_name(f.row, f.pattern): f.reason for f in result.failed}
    return {"model": result.model, "files": [str(p) for p in result.files], "not_run": lost}
