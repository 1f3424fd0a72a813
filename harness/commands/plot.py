"""`trinity plot`: the figures of the report as PDF and PNG."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Only, Out, RecordsIn, show


def plot(
    figures: Annotated[
        list[str] | None, typer.Argument(help="Which, for example bits; all if none is named.")
    ] = None,
    out: Out = Path("plots"),
    results: RecordsIn = Path("results"),
    only: Only = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="<str>", help="What to measure by: 'piqa'. May be repeated."),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(metavar="<str>", help="A run whose layers are drawn; two are compared."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw the figures of the report for a paper.

    As PDF and PNG, from records alone. Nothing is measured.
    """
    from trinity.harness.figures.shown import shown
    from trinity.harness.plots import plot as plots
    from trinity.harness.store.writing import check_writable

    asked = plots.Asked(tuple(figures or ()), tuple(by or ()), tuple(run or ()))
    plots.check(asked)
    check_writable(out)
    files, lacking = plots.plot(shown(results, only), asked, out)
    lines = [*(f"written: {path}" for path in files), *(f"not drawn: {why}" for why in lacking)]
    show({"files": [str(f) for f in files], "not_drawn": lacking}, as_json, "\n".join(lines))
