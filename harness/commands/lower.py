"""`trinity lower`: a compiled module."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import Debug, Json, Out, Quiet, Target, start, store

NOT_HERE = "Evaluate it where its target runs; `trinity doctor` says what this machine lacks."


def lower(
    checkpoint: Annotated[Path, typer.Argument(help="A folder made by `trinity compress`.")],
    out: Out,
    target: Target = "llvm-cpu",
    cpu: Annotated[
        str,
        typer.Option(
            help="For llvm-cpu: host, or the kind of processor it is for, such as x86-64-v3."
        ),
    ] = "host",
    emit: Annotated[
        str | None,
        typer.Option(help="Also write a stage: torch, annotated, storage, target or vmfb."),
    ] = None,
    length: Annotated[int, typer.Option(help="Tokens that a prefill call takes.")] = 128,
    context: Annotated[int, typer.Option(help="Positions of the key/value cache.")] = 2048,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compile a compressed checkpoint."""
    from trinity.harness.runs import requests
    from trinity.harness.terminal import printing

    asked = requests.lowering(checkpoint, (target, cpu), emit, (length, context), out)
    # Loads torch and the compiler: after what can be wrong without them.
    from trinity.harness.runs.outputs import lower_to

    with start(quiet) as reporter:
        result = lower_to(checkpoint, asked, emit, out, store(), reporter)
    if as_json:
        printing.data(result)
        return
    errors = result["logit_errors"] or {}
    farthest = f"logits differ by {max(errors.values()):.1e}" if errors else "not compared here"
    sizes = [result[f"bits_per_weight_{place}"] for place in ("checkpoint", "module")]
    printing.facts(
        [
            ("target", result["target"], ""),
            ("files", f"{out}: {result['files']}", ""),
            ("bits/weight", f"{sizes[0]:.3f} in the checkpoint, {sizes[1]:.3f} in the module", ""),
            ("against torch", farthest, "" if errors else NOT_HERE),
            ("to evaluate", f"trinity eval {out} --engine iree --target {target} --suite ...", ""),
        ]
    )
