"""`trinity compare`: two records or models."""

from typing import Annotated

import typer

from trinity.harness.commands.options import (
    Debug,
    DenseModel,
    EngineName,
    Json,
    Limit,
    Quiet,
    Seqlen,
    Suites,
    Target,
    Windows,
    show_grids,
    start,
    store,
)


def compare(
    ours: Annotated[str, typer.Argument(help="A record, or a compressed checkpoint or model.")],
    baseline: Annotated[str, typer.Argument(help="What it is compared with, of the same kind.")],
    suite: Suites = None,
    engine: EngineName = "torch",
    target: Target = "llvm-cpu",
    limit: Limit = None,
    windows: Windows = None,
    seqlen: Seqlen = None,
    dense: DenseModel = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare two records or two models.

    On the same samples, by paired tests, corrected by Holm for how many there are. Of two records
    also what else changed, and which questions flipped.
    """
    from trinity.harness.tracking import comparing, differences

    sizes = {"limit": limit, "windows": windows, "seqlen": seqlen}
    how = comparing.Evaluation(tuple(suite or ()), sizes, engine, target, dense)
    with start(quiet) as reporter:
        found = comparing.compare_two(ours, baseline, how, store(), reporter)
    other = differences.between(ours, baseline)
    show_grids(differences.as_data(found, other), as_json, differences.grids(found, other))
