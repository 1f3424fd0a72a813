"""`trinity export`: a checkpoint as other programs read it."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Out, Quiet, show, start


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A folder made by `trinity compress`.")],
    out: Out,
    layout: Annotated[
        str,
        typer.Option(
            "--format", help="compressed-tensors, gptq, gptq_v2 or huggingface (dequantized)."
        ),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a compressed checkpoint as other programs read it."""
    from trinity.harness.models import folders
    from trinity.harness.store.writing import check_new

    folders.check_layout(layout)
    check_new(out)
    folders.check_compressed(checkpoint, "export")
    # Loads torch: after what can be wrong without it.
    from trinity.harness.report.numbers import scaled
    from trinity.harness.runs.outputs import export_to

    with start(quiet):
        result = export_to(checkpoint, layout, out)
    text = f"{out}: {result['format']}, {scaled('size', 'bytes', result['size_bytes'])}"
    show(result, as_json, text)
