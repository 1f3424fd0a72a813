"""`trinity audit`: what a checkpoint of any program really stores, and which layers are wrong."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.audit import where
from trinity.harness.commands.options import Debug, Json, from_home, show_grids


def audit(
    path: Annotated[
        Path, typer.Argument(callback=from_home, help="A model folder, or a .gguf file.")
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a checkpoint really stores, and which of its layers are silently wrong.

    Reads dense, GPTQ, AWQ, compressed-tensors, bitsandbytes (4 bits) and GGUF, from files alone.
    Ends with exit code 1 where a fault is found.
    """
    place = where.located(path)
    # Imported here: torch, which a wrong path does not need.
    from trinity.harness.audit import audit as audits
    from trinity.harness.audit import shown

    found = audits.audit(place)
    show_grids(shown.data(found), as_json, shown.grids(found))
    if found.faults:
        raise typer.Exit(1)
