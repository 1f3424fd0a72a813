"""What `trinity plan` says of recipes beside what their runs take: memory and time of every part.

    python benchmarks/plan_peaks.py docs/examples/sweep/gptq-int4.yaml ...

Each part runs in a process of its own, on an empty store that the parts before it have filled.  So
its peak is its own, and nothing of it is there already.  Lowering includes the dense model that is
timed in turn, as in a plan.  Prints a table, with a row for all parts.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from trinity.harness.terminal.hush import hush_libraries

hush_libraries()

from trinity.harness.latency import ceilings, memory  # noqa: E402  after what is hushed
from trinity.harness.recipes import recipe  # noqa: E402  as above
from trinity.harness.records import available  # noqa: E402  as above
from trinity.harness.runs import estimate, memory_plan  # noqa: E402  as above
from trinity.harness.runs.run import Run  # noqa: E402  as above
from trinity.harness.store.spent import BENCH, COMPRESS, EVALUATE, LOWER  # noqa: E402  as above
from trinity.harness.store.stages import StageStore  # noqa: E402  as above
from trinity.harness.terminal.progress import Reporter  # noqa: E402  as above


@dataclass(frozen=True)
class Part:
    """Of one run.  planned, peak: bytes   planned_s, seconds: of the clock"""

    name: str
    planned: int
    peak: int | None
    planned_s: float
    seconds: float


def main() -> None:
    """Run every recipe, and print a row a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", type=Path, nargs="+")
    asked = parser.parse_args()
    print("| recipe | part | planned | peak | planned | took |")
    print("|---|---|---:|---:|---:|---:|")
    for path in asked.recipes:
        planned_s = seconds = 0.0
        with tempfile.TemporaryDirectory(prefix="plan-peaks-") as folder:
            for part in of_recipe(path, Path(folder)):
                peak = "not known" if part.peak is None else f"{part.peak / 1e9:.3f} GB"
                times = f"{part.planned_s:.1f} s | {part.seconds:.1f} s"
                row = f"{path.stem} | {part.name} | {part.planned / 1e9:.3f} GB | {peak} | {times}"
                print(f"| {row} |", flush=True)
                planned_s, seconds = planned_s + part.planned_s, seconds + part.seconds
            print(f"| {path.stem} | all | | | {planned_s:.1f} s | {seconds:.1f} s |", flush=True)


def of_recipe(path: Path, store: Path) -> list[Part]:
    """Every part that a recipe has, in order.  store: an empty folder"""
    asked = recipe.read(path, [])
    names = [COMPRESS]
    names += [LOWER] if asked.lower else []
    names += [EVALUATE] if asked.evaluate else []
    names += [BENCH] if asked.bench else []
    return [in_own_process(path, store, name) for name in names]


def in_own_process(path: Path, store: Path, name: str) -> Part:
    """One part, after those before it."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_told, args=(theirs, path, store, name))
    process.start()
    theirs.close()
    try:
        found: Part = ours.recv()
    except EOFError:
        sys.exit(f"{path}: {name} failed")
    process.join()
    return found


def _told(answer: Connection, path: Path, store: Path, name: str) -> None:
    answer.send(measured(path, store, name))


def measured(path: Path, store: Path, name: str) -> Part:
    """Do one part here, and compare."""
    asked, stages = recipe.read(path, []), StageStore(store)
    run = Run(asked, stages, Reporter(quiet=True))
    if name != COMPRESS:
        run.compress()
        available.give_back()
    plans = {peak.part: peak for peak in memory_plan.peaks(run, memory.resident_bytes())}
    size = estimate.size_of(run.source.path)
    seconds = estimate.of_rows([asked], size, ceilings.kept(stages)).seconds[name]
    available.give_back()
    started = time.perf_counter()
    _, peak = memory.peak_during(lambda: _do(run, name))
    return Part(name, plans[name].total, peak, seconds, time.perf_counter() - started)


def _do(run: Run, name: str) -> None:
    if name == COMPRESS:
        run.compress()
    elif name == LOWER:
        measuring = run.make_measuring()
        measuring.lower()
        if run.recipe.bench and run.recipe.bench.baseline:
            measuring.make_dense().lower()
    elif name == EVALUATE:
        assert run.recipe.evaluate is not None
        run.make_measuring().evaluate(run.recipe.evaluate)
    else:
        assert run.recipe.bench is not None
        run.make_measuring().bench(run.recipe.bench, run.recipe.engines)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
