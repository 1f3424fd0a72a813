"""`trinity report`: all records as one page to look at."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Only, Page, RecordsIn, show


def report(
    out: Page = Path("report.html"),
    results: RecordsIn = Path("results"),
    only: Only = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="<url>",
            help="What links to records begin with, if not the way from the file to them.",
        ),
    ] = None,
    texts: Annotated[
        bool,
        typer.Option(
            "--texts",
            help="Show the questions that flipped, where TRINITY_DATA_DIR holds them. They are "
            "other people's data: see their licence before you publish the page.",
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show records as one HTML file: figures, tables, history.

    It holds all that it needs and asks no network. Nothing is measured.
    """
    from trinity.harness.figures.flips import no_texts
    from trinity.harness.figures.shown import shown
    from trinity.harness.html import page
    from trinity.harness.store.writing import check_writable, write_text, writing
    from trinity.harness.tracking import flips

    page.check_packages()
    check_writable(out.parent)
    runs = shown(results, only)
    where = link if link is not None else page.link_from(out, results)
    text = page.render(runs, where, flips.texts if texts else no_texts)
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    show({"file": str(out), "runs": len(runs)}, as_json, f"written: {out} ({len(runs)} runs)")
