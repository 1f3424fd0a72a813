"""`trinity card`: a model's page for the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, show


def card(
    checkpoint: Annotated[Path, typer.Argument(help="A folder made by `trinity export`.")],
    record: Annotated[Path, typer.Option("--record", help="The record of the run that made it.")],
    licence: Annotated[
        str | None,
        typer.Option(metavar="<str>", help="Of the base model, as the hub spells it: apache-2.0."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model card for an exported checkpoint.

    README.md with the hub's metadata, and .eval_results, from the record of its run.
    """
    from trinity.harness.artifact import card as cards
    from trinity.harness.records.record import read

    files = cards.write(checkpoint, read(record), record.name, licence)
    text = "\n".join(f"written: {path}" for path in files)
    show({"files": [str(path) for path in files]}, as_json, text)
