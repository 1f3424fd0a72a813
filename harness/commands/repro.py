"""`trinity repro`: regenerate a paper's tables."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from trinity.harness.commands.options import (
    Debug,
    Fresh,
    Json,
    Quiet,
    Results,
    show_tables,
    start,
    store,
)

if TYPE_CHECKING:
    from trinity.harness.repro.repro import Reproduced


def repro(
    paper: Annotated[str, typer.Argument(help="Which paper, for example slim.")],
    table: Annotated[
        str | None,
        typer.Option(help="One table, for example table5; else those that the profile names."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="smoke, embedded, small or paper. Unless told: paper with a GPU, small where the "
            "Hugging Face hub answers, else embedded."
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
    fresh: Fresh = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Regenerate a paper's tables."""
    from trinity.harness.repro.repro import Selection, default_out, incomplete, reproduce

    folder = out or default_out(profile)
    asked = Selection(table, profile, rows, model)
    results = []
    try:
        with start(quiet) as reporter:
            for result in reproduce(paper, asked, folder, store(fresh), reporter):
                results.append(result)
    finally:
        # Whatever stops it, a failure or Ctrl-C: what is finished is shown.
        if results:
            show_tables({"tables": list(map(as_data, results))}, results, as_json)
    if lost := incomplete(results):
        raise lost


def as_data(result: "Reproduced") -> dict[str, Any]:
    """A table's files, and why rows are not in it."""
    from trinity.harness.recipes.paper import recipe_name

    lost = {recipe_name(f.row, f.pattern): f.reason for f in result.failed}
    return {"model": result.model, "files": [str(p) for p in result.files], "not_run": lost}
