"""`trinity artifact`: a set of runs as a folder for reviewers."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Only, RecordsIn, from_home, show


def artifact(
    out: Annotated[
        Path, typer.Option("--out", callback=from_home, help="Folder to make, new or empty.")
    ],
    results: RecordsIn = Path("results"),
    only: Only = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make an artifact for reviewers from records.

    A folder and an archive with records, recipes, versions, expected results and a script that
    runs it again. Nothing is measured.
    """
    from trinity.harness.artifact.artifact import make
    from trinity.harness.figures.shown import shown

    runs = shown(results, only)
    archive = make(runs, results, out)
    text = f"written: {out} ({len(runs)} runs)\nwritten: {archive}"
    show({"folder": str(out), "archive": str(archive), "runs": len(runs)}, as_json, text)
