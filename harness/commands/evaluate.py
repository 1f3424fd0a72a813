"""`trinity eval`: accuracy of one model."""

from typing import Annotated

import typer

from trinity.harness.commands.options import (
    Debug,
    DenseModel,
    EngineName,
    Json,
    Limit,
    Quiet,
    Revision,
    Seqlen,
    Target,
    Windows,
    show_measurements,
    start,
    store,
)


def evaluate(
    model: Annotated[str, typer.Argument(help="A compressed checkpoint, or any model.")],
    suite: Annotated[
        list[str], typer.Option(metavar="<str>", help="Accuracy suite. May be repeated.")
    ],
    revision: Revision = None,
    engine: EngineName = "torch",
    target: Target = "llvm-cpu",
    limit: Limit = None,
    windows: Windows = None,
    seqlen: Seqlen = None,
    dense: DenseModel = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure accuracy, in torch or on the compiled module."""
    from trinity.harness.runs import requests

    sizes = {"limit": limit, "windows": windows, "seqlen": seqlen}
    asked = requests.evaluation(model, suite, sizes, engine, target, dense, revision)
    # Loads torch and transformers: after what can be wrong without them.
    from trinity.harness.runs.one_model import evaluate_model

    with start(quiet) as reporter:
        found = evaluate_model(asked, store(), reporter)
    show_measurements(found, as_json)
