"""`trinity run`: one recipe, whole."""

from pathlib import Path
from typing import Annotated

import typer

from trinity.harness.commands.options import (
    Debug,
    Fresh,
    Json,
    Out,
    Quiet,
    Set,
    show,
    show_measurements,
    start,
    store,
)


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    set_: Set = None,
    out: Out = Path("results"),
    fresh: Fresh = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run one recipe: compress, lower, evaluate, time, record."""
    from trinity.harness.records import record
    from trinity.harness.runs import requests
    from trinity.harness.store.writing import check_writable

    asked = requests.run(recipe, set_ or [])
    check_writable(out)
    # Loads torch, transformers and the compiler: after what can be wrong without them.
    from trinity.harness.latency import memory
    from trinity.harness.runs import memory_plan
    from trinity.harness.runs.attempts import attempt
    from trinity.harness.runs.run import Run

    with start(quiet) as reporter:
        stages = store(fresh)
        with attempt(asked, out, stages):
            planned = Run(asked, stages, reporter)
            record.check_writable(out, planned.source.label, asked.name)
            memory_plan.check(memory_plan.peaks(planned, memory.resident_bytes()), planned.device)
            finished = planned.finish()
    path = record.write(finished.record, out)
    if not as_json:
        show_measurements(finished.record.measurements, as_json)
    text = f"checkpoint: {finished.checkpoint}\nrecord: {path}"
    show({"record": str(path), "checkpoint": str(finished.checkpoint)}, as_json, text)
