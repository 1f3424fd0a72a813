"""One model at hand: its accuracy, its latency and memory."""

import re
from pathlib import Path

from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.compress.imported import check_same_shapes
from trinity.harness.models.decoder import skeleton
from trinity.harness.models.folders import is_compressed, is_lowered
from trinity.harness.modules.module_stages import Subject
from trinity.harness.recipes import recipe
from trinity.harness.records.measurement import Measurement
from trinity.harness.runs import lowered
from trinity.harness.runs.measure import Measuring
from trinity.harness.runs.requests import Benching, Evaluation, check_machine
from trinity.harness.runs.run import Run
from trinity.harness.sources import sources
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError


def measuring_of(
    model: recipe.ModelSpec,
    lower: recipe.LowerSpec | None,
    store: StageStore,
    reporter: Reporter,
    evaluate: recipe.EvaluateSpec | None = None,
) -> Measuring:
    """Engines of a compressed checkpoint, or of any plain model taken as it is.

    evaluate: the suites that it will be given, of which some needs are checked first
    """
    folder = Path(model.id)
    if is_compressed(folder):
        sources.refuse_revision(model.id, model.revision)
        opened = Checkpoint.open(folder)
        subject = Subject(opened, sources.folder_sha256(folder), folder.name)
        return Measuring(
            subject,
            lower,
            store,
            reporter,
            lambda: _dense_of(opened, model.dense, lower, store, reporter),
        )
    data = {
        "name": _called(model),
        "model": model.model_dump(),
        "lower": lower.model_dump() if lower else None,
        "evaluate": evaluate.model_dump() if evaluate else None,
    }
    return Run(recipe.parse(data, model.id), store, reporter).make_measuring()


def _called(model: recipe.ModelSpec) -> str:
    """A plain model's name in progress: 'dense' is the one that others are compared with."""
    if model.dense in (None, model.id):
        return "dense"
    return re.sub(r"[^A-Za-z0-9._+-]", "-", Path(model.id).resolve().name)


def _dense_of(
    opened: Checkpoint,
    named: str | None,
    lower: recipe.LowerSpec | None,
    store: StageStore,
    reporter: Reporter,
) -> Measuring:
    """The model that a checkpoint was compressed from: by the name given, else by its own note."""
    folder, summary = opened.folder, opened.summary
    made_from, imported = summary["model"], summary.get("imported")
    name = named or made_from.get("id")
    if name is None:
        how = f" by {imported['method']}" if imported else ""
        msg = (
            f"checkpoint {folder}: its weights were compressed elsewhere and read{how}, so the "
            f"model before compression is not known, and a suite or baseline compares with it. "
            f"Name it with --dense."
        )
        raise ConfigError(msg)
    data = {
        "name": "dense",
        "model": {
            "id": name,
            "revision": None if named else made_from.get("revision"),
            "dtype": opened.dtype,
        },
        "lower": lower.model_dump() if lower else None,
    }
    run = Run(recipe.parse(data, name), store, reporter)
    if imported:
        model = skeleton(opened.config, run.decoder.dtype)
        check_same_shapes(f"checkpoint {folder}", model, run.decoder)
    elif run.source.sha256 != made_from["sha256"]:
        msg = (
            f"checkpoint {folder}: was made from '{made_from['id']}' with sha256 "
            f"{made_from['sha256'][:12]}, and the model '{name}' here has "
            f"{run.source.sha256[:12]}: they cannot be compared. Get the model it was made from."
        )
        raise ConfigError(msg)
    return run.make_measuring()


def evaluate_model(asked: Evaluation, store: StageStore, reporter: Reporter) -> list[Measurement]:
    """Accuracy suites on one model."""
    check_machine(asked.suites, asked.lower)
    if is_lowered(Path(asked.model.id)):
        return lowered.evaluate(asked, reporter)
    measuring = measuring_of(asked.model, asked.lower, store, reporter, asked.suites)
    return measuring.evaluate(asked.suites)


def bench_model(asked: Benching, store: StageStore, reporter: Reporter) -> list[Measurement]:
    """Latency and memory suites on one model."""
    check_machine(None, asked.lower)
    measuring = measuring_of(asked.model, asked.lower, store, reporter)
    return measuring.bench(asked.suites, list(asked.engines))
