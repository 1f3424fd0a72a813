"""`trinity fetch`: all that a run needs, before it is run without a network."""

from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Quiet, Revision, show, start, store


def fetch(
    what: Annotated[str, typer.Argument(help="A recipe's file, a paper, or a model.")],
    table: Annotated[str | None, typer.Option(help="Of a paper: one table.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Of a paper; as `trinity repro` chooses it if left out.")
    ] = None,
    rows: Annotated[str | None, typer.Option(help="Of a paper: glob over row names.")] = None,
    model: Annotated[str | None, typer.Option(help="Of a paper: glob over its models.")] = None,
    revision: Revision = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch all that a recipe or a paper needs.

    Models, texts and tasks; it runs without a network afterwards.
    """
    from trinity.harness.repro import fetching
    from trinity.harness.repro.repro import Selection

    needs = fetching.needs_of(what, Selection(table, profile, rows, model), revision)
    with start(quiet) as reporter:
        got = fetching.fetch(needs, store(), reporter)
    width = max(len(item.what) for item in got)
    lines = [
        f"{item.what:<{width}}  {'missing' if item.failure else f'{item.size_bytes / 1e6:.1f} MB'}"
        f"{'' if item.failure else f'  {item.place}'}"
        for item in got
    ]
    data = [
        {
            "what": item.what,
            "from": item.place,
            "bytes": item.size_bytes,
            "failure": str(item.failure) if item.failure else None,
        }
        for item in got
    ]
    if needs.run:
        lines.append(f"To run it without a network: HF_HUB_OFFLINE=1 {needs.run}")
    show({"fetched": data, "run": needs.run}, as_json, "\n".join(lines))
    if lost := fetching.incomplete(got):
        raise lost
