"""`trinity train`: pretraining, sparse or dense."""

from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Out, Quiet, Revision, show, start, store


def train(
    model: Annotated[str, typer.Argument(help="A model folder, hub id or random:NAME.")],
    out: Out,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="<str>", help="A field of the training. May be repeated."),
    ] = None,
    snapshot_every: Annotated[
        int, typer.Option(min=1, help="Steps between two snapshots, to go on after a kill.")
    ] = 100,
    revision: Revision = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a model, N:M sparse or dense.

    The same command goes on where a killed one was. docs/training.md has the fields.
    """
    from trinity.harness.runs import requests

    asked = requests.training(model, set_ or [], revision, out)
    # Loads torch and transformers: after what can be wrong without them.
    from trinity.harness.runs.train import train_to
    from trinity.harness.training.workers import started

    with started() as workers, start(quiet or workers.rank > 0) as reporter:
        result = train_to(asked, out, snapshot_every, workers, store(), reporter)
    if not workers.rank:
        text = (
            f"{result['checkpoint']}: {result['steps']} steps, the last tenth of them at a mean "
            f"loss of {result['loss']:.4f} nats per token"
        )
        show(result, as_json, text)
