"""`trinity table`: tables from records."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Results, show_grid, show_tables


def table(
    paper: Annotated[
        str | None, typer.Argument(help="Which paper, for example slim; all for every one.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="smoke, embedded (if left out), small or paper.")
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option(help="Instead: a question to all records, over the view `measurements`."),
    ] = None,
    out: Results = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Render a paper's tables again from records.

    From those that are there, the newest of each row; nothing is measured. Or answer a question in
    SQL over all records.
    """
    from trinity.harness.repro import rendering
    from trinity.harness.repro.repro import default_out
    from trinity.methods.errors import ConfigError

    asked = [paper, sql].count(None)
    if asked != 1 or (profile and (sql or paper == rendering.ALL)):
        msg = "table: give a paper (with --profile), or `all`, or --sql; one of them."
        raise ConfigError(msg)
    if sql is not None:
        _answer(sql, out or Path("results"), as_json)
        return
    assert paper is not None
    if paper == rendering.ALL:
        results, pages = rendering.render_all(out or Path("results"))
    else:
        folder = out or default_out(profile)
        results, pages = rendering.render_tables(paper, profile or "embedded", folder), []
    files = [str(path) for result in results for path in result.files]
    files += [str(path) for path in pages]
    if paper != rendering.ALL or as_json:
        show_tables({"files": files}, results, as_json)
        return
    for name in files:
        typer.echo(f"written: {name}")


def _answer(sql: str, results: Path, as_json: bool) -> None:
    from trinity.harness.tracking import queries

    names, rows = queries.ask(sql, results)
    data = [dict(zip(names, row, strict=True)) for row in rows]
    show_grid(data, as_json, queries.grid(names, rows))
