"""`trinity history`: a number over records, and where it stepped."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Out, show_grid


def history(
    metric: Annotated[str, typer.Argument(help="perplexity, acc, speedup, tokens_per_s, ...")],
    recipe: Annotated[str | None, typer.Option(help="Glob over recipes.")] = None,
    model: Annotated[str | None, typer.Option(help="Glob over models.")] = None,
    name: Annotated[str | None, typer.Option(help="Glob over measurements: 'piqa'.")] = None,
    engine: Annotated[str | None, typer.Option(help="torch or iree.")] = None,
    machine: Annotated[str | None, typer.Option(help="Glob over machines.")] = None,
    out: Out = Path("results"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a number over commits and machines.

    Where it steps to another level: the first record after it, and what else changed there.
    """
    from trinity.harness.tracking import history as histories
    from trinity.harness.tracking import history_text

    which = histories.Which(recipe, model, name, engine, machine)
    series = histories.of(metric, which, out)
    data = [histories.as_data(one) for one in series]
    show_grid(data, as_json, history_text.grid(series))
