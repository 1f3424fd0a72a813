"""What a command asks for, as checked data, before anything heavy is loaded: what can be known to
be wrong costs no seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trinity.harness.accuracy import suites
from trinity.harness.models import folders
from trinity.harness.recipes import recipe, sections
from trinity.harness.recipes.recipe import (
    BenchSpec,
    CalibrationSpec,
    EvaluateSpec,
    LowerSpec,
    ModelSpec,
    Recipe,
    TrainingSpec,
)
from trinity.harness.sources import sources
from trinity.harness.store.writing import check_new
from trinity.harness.texts import corpora
from trinity.lowering.targets import targets
from trinity.methods import registry
from trinity.methods.errors import ConfigError, MachineError

EMITTED = ("torch", "annotated", "storage", "target", "vmfb")


@dataclass(frozen=True)
class Evaluation:
    """Accuracy suites on one model, and what they run on."""

    model: ModelSpec
    suites: EvaluateSpec
    lower: LowerSpec | None


@dataclass(frozen=True)
class Benching:
    """Latency and memory suites on one model.  engines: torch, iree"""

    model: ModelSpec
    suites: BenchSpec
    engines: tuple[str, ...]
    lower: LowerSpec | None


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    model: str
    revision: str | None
    spec: TrainingSpec


def run(path: Path, settings: list[str]) -> Recipe:
    """A recipe file with overrides."""
    found = recipe.read(path, settings)
    check(found)
    return found


def training(model: str, settings: list[str], revision: str | None, out: Path) -> Training:
    """A model and how it is trained.  settings: fields of `TrainingSpec`, KEY=value"""
    check_new(out)
    fields: dict[str, Any] = {}
    for setting in settings:
        recipe.apply_override(fields, setting)
    spec = sections.parse(TrainingSpec, fields, "training")
    corpora.at_hand(spec.dataset, spec.split)
    sources.check_id(model)
    return Training(model, revision, spec)


def compression(
    model: str,
    method: str,
    settings: list[str],
    dtype: str,
    out: Path,
    revision: str | None = None,
) -> Recipe:
    """One method on one model.  settings: method options, or calibration.KEY=value"""
    check_new(out)
    step: dict[str, Any] = {"method": method}
    asked: dict[str, Any] = {
        "name": method,
        "model": {"id": model, "revision": revision, "dtype": dtype},
        "compress": {"steps": [step]},
    }
    for setting in settings:
        recipe.apply_override(asked if setting.startswith("calibration.") else step, setting)
    found = recipe.parse(asked, "compress")
    check(found)
    return found


def evaluation(
    model: str,
    names: list[str],
    sizes: dict[str, int | None],
    engine: str,
    target: str,
    dense: str | None = None,
    revision: str | None = None,
) -> Evaluation:
    """Suites by name, each with those of the sizes that it has."""
    asked = {
        "model": {"id": model, "revision": revision, "dense": dense},
        "evaluate": {"suites": suites.sized(names, sizes), "engine": engine},
        **({"lower": {"target": target}} if engine == "iree" else {}),
    }
    found = recipe.parse(asked, "eval")
    check(found)
    assert found.evaluate is not None
    if folders.is_lowered(Path(model)):
        folders.check_module(Path(model), engine, target)
        _check_alone(model, found.evaluate)
    return Evaluation(found.model, found.evaluate, found.lower)


def benching(
    model: str,
    names: list[str],
    engines: list[str],
    target: str,
    context: int,
    settings: dict[str, Any],
    dense: str | None = None,
    revision: str | None = None,
) -> Benching:
    """Suites by name.  target, context: of the module   settings: other keys of `bench:`"""
    if folders.is_lowered(Path(model)):
        msg = (
            f"bench {model}: holds a compiled module. Timings are taken in turn with torch and the "
            f"dense model: give the checkpoint that it was made from "
            f"('{folders.lowered_facts(Path(model))['checkpoint']['name']}')."
        )
        raise ConfigError(msg)
    unknown = sorted(set(engines) - {"torch", "iree"})
    if unknown:
        msg = f"--engine {', '.join(unknown)}: expected torch or iree."
        raise ConfigError(msg)
    asked: dict[str, Any] = {
        "model": {"id": model, "revision": revision, "dense": dense},
        "bench": {"suites": names, **settings},
        **({"lower": {"target": target, "context": context}} if "iree" in engines else {}),
    }
    found = recipe.parse(asked, "bench")
    check(found)
    assert found.bench is not None
    return Benching(found.model, found.bench, tuple(engines), found.lower)


def lowering(
    folder: Path, place: tuple[str, str], emit: str | None, sizes: tuple[int, int], out: Path
) -> LowerSpec:
    """One checkpoint for one target.

    place: target, and kind of processor   emit: a stage to write too
    sizes: tokens of a prefill call, positions of the cache
    """
    check_new(out)
    if emit not in (None, *EMITTED):
        msg = f"--emit {emit}: expected one of {', '.join(EMITTED)}."
        raise ConfigError(msg)
    folders.check_compressed(folder, "lower")
    (target, cpu), (length, context) = place, sizes
    section = {"target": target, "cpu": cpu, "length": length, "context": context}
    found = recipe.parse({"model": {"id": str(folder)}, "lower": section}, "lower").lower
    assert found is not None
    targets.get(found.target, found.cpu)
    return found


def _check_alone(model: str, evaluate: EvaluateSpec) -> None:
    """ConfigError for suites that compare a compiled module with the dense model."""
    for suite in evaluate.suites:
        if suites.resolve(suite).needs_dense:
            msg = (
                f"eval {model}: suite '{suite.suite}' compares with the dense model, which a "
                f"compiled module knows nothing of. Evaluate the checkpoint that it was made from, "
                f"with --engine iree."
            )
            raise ConfigError(msg)


def check(asked: Recipe) -> None:
    """ConfigError for a name that there is not: of a method, suite, target, data set or model; at
    the end, because methods load torch, for an option of a method.
    """
    steps = (*asked.compress.steps, *sum(asked.compress.layers.values(), ()))
    for step in steps:
        registry.owner(step.method)
    for text in _texts(asked):
        corpora.at_hand(text.dataset, text.split)
    for suite in asked.evaluate.suites if asked.evaluate else ():
        suites.resolve(suite)
    if asked.lower:
        targets.get(asked.lower.target, asked.lower.cpu)
    sources.check_id(asked.model.id)
    if asked.model.dense:
        sources.check_id(asked.model.dense)
    for step in steps:
        registry.configure(step.method, step.options)


def check_machine(evaluate: EvaluateSpec | None, lower_spec: LowerSpec | None) -> None:
    """Refuse, before anything is loaded, what this machine lacks: data, a target's device."""
    if evaluate:
        for suite in evaluate.suites:
            missing = suites.missing(suite)
            if missing:
                raise MachineError(missing)
        if evaluate.engine == "iree" and lower_spec is None:
            msg = "evaluate.engine is 'iree', and no `lower:` section of the recipe names a target."
            raise ConfigError(msg)
    if lower_spec:
        # Imported here: it loads the runtime, which a recipe without `lower:` does without.
        from trinity.lowering.module import devices

        devices.require(targets.get(lower_spec.target, lower_spec.cpu))


def _texts(asked: Recipe) -> list[CalibrationSpec]:
    """Every text that a recipe names for calibrating or tuning."""
    tune = asked.compress.tune
    if tune:
        registry.owner(tune.method)
    named = [asked.calibration, tune.data if tune else None]
    return [text for text in named if text]
