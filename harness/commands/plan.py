"""`trinity plan`: what a run will take, before it is started."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Quiet, Set, show_grid, start, store


def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    set_: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say how much memory, disk and time a recipe will take, with the arithmetic.

    Exit code 3 if the memory will not do.
    """
    from trinity.harness.runs import requests

    asked = requests.run(recipe, set_ or [])
    # Loads torch and transformers: after what can be wrong without them.
    from trinity.harness.runs import planned

    with start(quiet) as reporter:
        found = planned.of_recipe(asked, store(), reporter)
    show_grid(found.data(), as_json, found.grid())
    found.check()
