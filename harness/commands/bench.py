"""`trinity bench`: latency and memory of one model."""

from typing import Annotated, Any

import typer

from trinity.harness.commands.options import (
    Debug,
    DenseModel,
    Json,
    Quiet,
    Revision,
    Target,
    show_measurements,
    start,
    store,
)


def bench(
    model: Annotated[str, typer.Argument(help="A compressed checkpoint, or any model.")],
    suite: Annotated[
        list[str],
        typer.Option(
            metavar="<str>", help="prefill, decode, memory, compress or layers. May be repeated."
        ),
    ],
    engine: Annotated[
        list[str] | None, typer.Option(metavar="<str>", help="torch, iree; both if not given.")
    ] = None,
    revision: Revision = None,
    target: Target = "llvm-cpu",
    prompt: Annotated[int, typer.Option(help="Prompt tokens.")] = 128,
    new: Annotated[int, typer.Option(help="New tokens of a decode.")] = 32,
    repeats: Annotated[int, typer.Option(help="Kept samples of each engine.")] = 5,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            metavar="<int>", help="Sequences at once, of prefill and decode. May be repeated."
        ),
    ] = None,
    context: Annotated[int, typer.Option(help="Positions of the module's caches.")] = 2048,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="dense: time the model before compression in turn, and compare. float-cache: the "
            "same weights with keys and values as floats."
        ),
    ] = None,
    dense: DenseModel = None,
    rows: Annotated[
        list[int] | None,
        typer.Option(metavar="<int>", help="Tokens at once, of suite layers. May be repeated."),
    ] = None,
    shapes: Annotated[
        str, typer.Option(help="Of suite layers: model, llama-2-7b, -13b, -70b or opt-6.7b.")
    ] = "model",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure latency and memory, engines interleaved."""
    from trinity.harness.runs import requests

    engines = engine or ["torch", "iree"]
    settings: dict[str, Any] = {"prompt": prompt, "new": new, "repeats": repeats}
    settings |= {"baseline": baseline, "rows": rows or [1], "shapes": shapes}
    settings |= {"batch": batch or [1]}
    asked = requests.benching(model, suite, engines, target, context, settings, dense, revision)
    # Loads torch, transformers and the compiler: after what can be wrong without them.
    from trinity.harness.runs.one_model import bench_model

    with start(quiet) as reporter:
        found = bench_model(asked, store(), reporter)
    show_measurements(found, as_json)
