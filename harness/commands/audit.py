"""`trinity audit`: what a checkpoint of any program really stores, and which layers are wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trinity.harness.audit import where
from trinity.harness.commands.options import (
    Debug,
    Json,
    Limit,
    Quiet,
    Seqlen,
    Windows,
    from_home,
    show_grids,
    start,
    store,
)
from trinity.methods.errors import ConfigError

if TYPE_CHECKING:
    from trinity.harness.tracking.comparing import Evaluation

USUAL = ("perplexity-pydoc", "fidelity-pydoc")
USUAL_SIZES = {"windows": 16, "seqlen": 512}  # enough windows for a paired test to show something


def audit(
    path: Annotated[
        Path, typer.Argument(callback=from_home, help="A model folder, or a .gguf file.")
    ],
    dense: Annotated[
        str | None, typer.Option(help="The model that it was made from, to compare with.")
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<str>",
            help="With --dense: accuracy suite, instead of perplexity and fidelity on 16 windows "
            "of pydoc. May be repeated.",
        ),
    ] = None,
    limit: Limit = None,
    windows: Windows = None,
    seqlen: Seqlen = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what a checkpoint really stores, and which of its layers are silently wrong.

    Reads dense, GPTQ, AWQ, compressed-tensors, bitsandbytes (4 bits) and GGUF, from files alone.
    With --dense also how far weights and answers are from that model's. Ends with exit code 1 where
    a fault is found.
    """
    place = where.located(path)
    how = _asked(dense, suite or [], {"limit": limit, "windows": windows, "seqlen": seqlen})
    # Imported here: torch, which a wrong path does not need.
    from trinity.harness.audit import audit as audits
    from trinity.harness.audit import shown

    found = audits.audit(place)
    data, grids = shown.data(found), shown.grids(found)
    if how is not None:
        from trinity.harness.tracking import auditing

        with start(quiet) as reporter:
            found, against = auditing.compare(found, how, store(), reporter)
        data = {**shown.data(found), "against": auditing.data(against)}
        grids = [*shown.grids(found), *auditing.grids(against)]
    show_grids(data, as_json, grids)
    if found.faults:
        raise typer.Exit(1)


def _asked(
    dense: str | None, suites: list[str], sizes: dict[str, int | None]
) -> "Evaluation | None":
    """What is measured of the checkpoint and of the dense model; None without one.

    ConfigError for what can be known to be wrong before anything is read.
    """
    from trinity.harness.runs import requests
    from trinity.harness.tracking.comparing import Evaluation

    given = [name for name, size in sizes.items() if size is not None]
    if dense is None:
        if options := ["suite"] * bool(suites) + given:
            msg = (
                f"audit: --{', --'.join(options)} is for a comparison with the model before "
                f"compression. Name it with --dense."
            )
            raise ConfigError(msg)
        return None
    if not suites:
        sizes = {**USUAL_SIZES, **{name: sizes[name] for name in given}}
    how = Evaluation(tuple(suites) or USUAL, sizes, dense=dense)
    requests.evaluation(dense, list(how.suites), how.sizes, how.engine, how.target, dense)
    return how
