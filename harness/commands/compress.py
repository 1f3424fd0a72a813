"""`trinity compress`: a compressed checkpoint."""

from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Out, Quiet, Revision, show, start, store


def compress(
    model: Annotated[str, typer.Argument(help="A model folder, hub id or package:NAME.")],
    method: Annotated[str, typer.Option(help="A registered method; see `trinity methods list`.")],
    out: Out,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="<str>",
            help="A method option, or calibration.KEY=value. May be repeated.",
        ),
    ] = None,
    revision: Revision = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a compressed checkpoint, nothing else."""
    from trinity.harness.runs import requests

    asked = requests.compression(model, method, set_ or [], dtype, out, revision)
    # Loads torch and transformers: after what can be wrong without them.
    from trinity.harness.runs.outputs import compress_to

    with start(quiet) as reporter:
        result = compress_to(asked, out, store(), reporter)
    text = f"{out}: {result['bits_per_weight']:.3f} bits per weight, {result['layers']} layers"
    listed = {
        "dense": "linears left dense",
        "decoded": "weights outside the blocks, kept as plain floats",
        "unmapped": "tensors not mapped",
    }
    for key, words in listed.items():
        if result.get(key):
            text += f"\n{words} ({len(result[key])}): {', '.join(result[key])}"
    show(result, as_json, text)
