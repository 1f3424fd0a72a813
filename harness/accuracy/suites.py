"""Accuracy suites: YAML data, read into frozen models, run on any Engine.

Built-in suites are `harness/suites/*.yaml`.  Third parties add some through the `trinity.suites`
entry-point group, each entry naming a mapping with the same keys.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

from trinity.harness import data
from trinity.harness.accuracy import fidelity, last_word, perplexity, task_data
from trinity.harness.data import Tokenizer
from trinity.harness.engine import Engine
from trinity.harness.recipe import SuiteSpec
from trinity.harness.records.measurement import Measurement
from trinity.methods.errors import ConfigError, nearest

GROUP = "trinity.suites"

_FROZEN = ConfigDict(frozen=True, extra="forbid")
Window = Annotated[int, Field(ge=2)]


class PerplexitySuite(BaseModel):
    """Perplexity of one text.

    documents: the first ones only (None: all)   windows: the first ones only (None: all)
    """

    model_config = _FROZEN

    kind: Literal["perplexity"]
    name: str
    corpus: str
    split: str
    seqlen: Window
    windows: PositiveInt | None = None
    documents: PositiveInt | None = None
    joiner: str = perplexity.BLANK_LINE


class TasksSuite(BaseModel):
    """Zero-shot accuracy through lm-eval.

    versions: lm-eval's, of the tasks; another installed version is refused
    limit: examples a task (None: all)
    """

    model_config = _FROZEN

    kind: Literal["tasks"]
    name: str
    tasks: tuple[str, ...] = Field(min_length=1)
    metric: Literal["acc"] = "acc"
    num_fewshot: Literal[0] = 0
    versions: dict[str, str] = Field(default_factory=dict)
    limit: PositiveInt | None = None


class FidelitySuite(BaseModel):
    """Closeness to the dense model's distributions on a text; sizes as of a perplexity."""

    model_config = _FROZEN

    kind: Literal["fidelity"]
    name: str
    corpus: str
    split: str
    seqlen: Window
    windows: PositiveInt | None = None


class FlipsSuite(BaseModel):
    """Answers that are others than the dense model's, in a suite of tasks.

    of: the suite   tasks, limit: as of that suite (None: as it has them)
    """

    model_config = _FROZEN

    kind: Literal["flips"]
    name: str
    of: str
    tasks: tuple[str, ...] | None = None
    limit: PositiveInt | None = None

    @property
    def tasks_spec(self) -> SuiteSpec:
        """The suite whose answers are compared, with these sizes."""
        return SuiteSpec(suite=self.of, tasks=self.tasks, limit=self.limit)


class LastWordSuite(BaseModel):
    """Last-word prediction; limit: examples (None: all)."""

    model_config = _FROZEN

    kind: Literal["last-word"]
    name: str
    corpus: str
    split: str
    limit: PositiveInt | None = None


Suite = PerplexitySuite | TasksSuite | LastWordSuite | FidelitySuite | FlipsSuite

_KINDS: dict[str, type[Suite]] = {
    "perplexity": PerplexitySuite,
    "tasks": TasksSuite,
    "last-word": LastWordSuite,
    "fidelity": FidelitySuite,
    "flips": FlipsSuite,
}
_ADAPTER: TypeAdapter[Suite] = TypeAdapter(Annotated[Suite, Field(discriminator="kind")])


def names() -> list[str]:
    """Every suite, built-in and third-party, sorted."""
    return sorted(_owners())


def load(name: str) -> Suite:
    """Read a suite by name; ConfigError with the nearest names if there is none."""
    owners = _owners()
    if name not in owners:
        msg = (
            f"suite '{name}' is unknown.{nearest(name, sorted(owners))} Known: "
            f"{', '.join(sorted(owners))}; plugins register in the '{GROUP}' entry-point group."
        )
        raise ConfigError(msg)
    owner, place = owners[name]
    if owner == "trinity":
        return parse(
            name,
            yaml.safe_load(files("trinity.harness").joinpath("suites", place).read_text("utf-8")),
        )
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        msg = f"suite '{name}' of {owner}: '{place}' cannot be loaded ({error})."
        raise ConfigError(msg) from error
    return parse(name, found)


def parse(name: str, content: Any) -> Suite:
    """A mapping, as YAML gives it, to a suite; ConfigError names the wrong key."""
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind not in _KINDS:
        msg = (
            f"suite '{name}': expected a mapping whose `kind` is one of {', '.join(_KINDS)}, found "
            f"{kind!r}."
        )
        raise ConfigError(msg)
    known = sorted(set(_KINDS[kind].model_fields) - {"name"})
    unknown = sorted(set(map(str, content)) - set(known))
    if unknown:
        hints = "".join(nearest(key, known) for key in unknown)
        msg = (
            f"suite '{name}' has no key {', '.join(unknown)}.{hints} Keys of kind {kind}: "
            f"{', '.join(known)}."
        )
        raise ConfigError(msg)
    try:
        return _ADAPTER.validate_python(content | {"name": name})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}, found {item['input']!r}"
            for item in error.errors()
        )
        msg = f"suite '{name}': {problems}."
        raise ConfigError(msg) from error


def resolve(spec: SuiteSpec) -> Suite:
    """The named suite with the sizes that a recipe gives it; ConfigError if it has no such size."""
    suite = load(spec.suite)
    changes = spec.model_dump(exclude_none=True, exclude={"suite"})
    known = sorted(set(type(suite).model_fields) - {"kind", "name"})
    unknown = sorted(set(changes) - set(known))
    if unknown:
        msg = (
            f"suite '{spec.suite}' is of kind {suite.kind} and has no {', '.join(unknown)}. Keys: "
            f"{', '.join(known)}."
        )
        raise ConfigError(msg)
    return parse(spec.suite, suite.model_dump(exclude={"name"}) | changes)


def at_hand(spec: SuiteSpec) -> str | None:
    """None if the suite's data are on this machine, else what is missing."""
    suite = resolve(spec)
    if isinstance(suite, FlipsSuite):
        return at_hand(suite.tasks_spec)
    if isinstance(suite, TasksSuite):
        absent = [reason for task in suite.tasks if (reason := task_data.at_hand(task))]
    else:
        reason = data.at_hand(suite.corpus, suite.split)
        absent = [reason] if reason else []
    return "; ".join(absent) or None


def missing(spec: SuiteSpec) -> str | None:
    """None if the suite's data are on this machine or may be on the hub, else an error's text."""
    absent = at_hand(spec)
    if absent is None or not data.hub_is_off():
        return None
    return (
        f"suite '{spec.suite}': {absent}; and HF_HUB_OFFLINE forbids asking the Hugging Face hub. "
        f"Put the files there, unset HF_HUB_OFFLINE, or use a suite on pydoc, which needs no data."
    )


def fingerprint(spec: SuiteSpec) -> dict[str, str]:
    """A hash of each text or local task file; 'hub' for a task whose data only the hub has."""
    suite = resolve(spec)
    if isinstance(suite, FlipsSuite):
        return fingerprint(suite.tasks_spec)
    if isinstance(suite, TasksSuite):
        return {task: task_data.source(task).get("sha256", "hub") for task in suite.tasks}
    return {suite.corpus: data.load(suite.corpus, suite.split).sha256}


def needs_dense(spec: SuiteSpec) -> bool:
    """Whether the suite compares with the model before compression."""
    return isinstance(resolve(spec), (FidelitySuite, FlipsSuite))


def run(
    spec: SuiteSpec,
    engine: Engine,
    tokenizer: Tokenizer,
    dense: Callable[[], Engine] | None = None,
) -> list[Measurement]:
    """Measure one suite; measurements carry the suite's name, those of tasks the task's.

    dense: the model before compression, for suites that compare with it
    """
    suite = resolve(spec)
    if isinstance(suite, FlipsSuite):
        msg = f"suite '{suite.name}' compares the answers of two runs and is not run on one engine."
        raise ConfigError(msg)
    if isinstance(suite, TasksSuite):
        return _run_tasks(suite, engine, tokenizer)
    corpus = data.load(suite.corpus, suite.split)
    if isinstance(suite, LastWordSuite):
        return [last_word.evaluate(engine, tokenizer, corpus, suite.limit, name=suite.name)]
    sizes = (suite.seqlen, suite.windows)
    if isinstance(suite, FidelitySuite):
        if dense is None:
            msg = f"suite '{suite.name}' compares with the dense model, and none is at hand."
            raise ConfigError(msg)
        return fidelity.evaluate(engine, dense(), tokenizer, corpus, *sizes, name=suite.name)
    text = replace(corpus, documents=corpus.documents[: suite.documents])
    return [
        perplexity.evaluate(engine, tokenizer, text, *sizes, name=suite.name, joiner=suite.joiner)
    ]


def _run_tasks(suite: TasksSuite, engine: Engine, tokenizer: Tokenizer) -> list[Measurement]:
    # Loaded on demand: this module imports lm_eval, which takes seconds.
    tasks = importlib.import_module("trinity.harness.accuracy.tasks")
    measured: list[Measurement] = tasks.evaluate(
        engine, tokenizer, suite.tasks, suite.limit, suite=suite.name, versions=suite.versions
    )
    return measured


@cache
def _owners() -> dict[str, tuple[str, str]]:
    """Name -> ('trinity', file name) or (distribution, 'module:object')."""
    owners = {
        entry.name.removesuffix(".yaml"): ("trinity", entry.name)
        for entry in files("trinity.harness").joinpath("suites").iterdir()
        if entry.name.endswith(".yaml")
    }
    for entry in entry_points(group=GROUP):
        owner = (entry.dist.name if entry.dist else "an unknown distribution", entry.value)
        if owners.setdefault(entry.name, owner) != owner:
            msg = (
                f"suite '{entry.name}' is registered twice: by {owners[entry.name][0]} and by "
                f"{owner[0]} ({owner[1]}). Uninstall one."
            )
            raise ConfigError(msg)
    return owners
