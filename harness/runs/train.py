"""A model that a user trains: snapshots beside the folder, which is there once training is over."""

from functools import partial
from pathlib import Path
from typing import Any

from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.runs.requests import Training
from trinity.harness.sources.sources import resolve
from trinity.harness.store.stages import StageStore
from trinity.harness.store.writing import make_folder
from trinity.harness.terminal.progress import Reporter
from trinity.harness.training import pretrain, snapshots
from trinity.harness.training.loop import Course
from trinity.harness.training.workers import Workers

UNFINISHED = ".training"  # of the folder of snapshots, after the name of the one to be made


def train_to(
    asked: Training,
    out: Path,
    every: int,
    workers: Workers,
    store: StageStore,
    reporter: Reporter,
) -> dict[str, Any]:
    """Train, and make `out`.  every: steps between two snapshots  ->  what was made, as data"""
    # The first process makes a random model: transformers saves nothing in the others.
    found = workers.in_turn(partial(resolve, asked.model, asked.revision, store, reporter=reporter))
    begin = pretrain.Start(found.path, found.sha256)
    kept = out.absolute().with_name(out.absolute().name + UNFINISHED)
    courses: list[Course] = []

    def fill(folder: Path) -> None:
        train = partial(pretrain.train, begin, tokenizer_of(found.path), asked.spec, folder)
        courses.append(train(workers, reporter, (kept, every)))

    if workers.rank:
        fill(out)  # computes its share; the first process alone writes
    else:
        make_folder(out, fill)
        snapshots.forget(kept)
    losses = courses[0].losses
    last = losses[-max(1, len(losses) // 10) :]
    return {
        "checkpoint": str(out / f"ckpt_{asked.spec.steps}.pt"),
        "steps": len(losses),
        "loss": sum(last) / len(last),
        "resumed_at": [run["first_step"] for run in courses[0].runs[1:]],
    }
