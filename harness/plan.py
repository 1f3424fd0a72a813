"""What is done to which layer, checked against the layers' shapes before a weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from trinity.harness.recipe import CompressSpec, Step
from trinity.methods import registry
from trinity.methods.contract import (
    BlockMethod,
    CheckpointSource,
    Method,
    MethodConfig,
    Statistic,
)
from trinity.methods.errors import ConfigError

NAMES_SHOWN = 3


@dataclass(frozen=True)
class PlannedStep:
    """A method with its checked options."""

    name: str
    method: Method[MethodConfig] | BlockMethod[MethodConfig]
    config: MethodConfig

    def describe(self) -> dict[str, object]:
        """Name and every option, defaults included, as plain data."""
        return {"method": self.name, **self.config.model_dump(mode="json")}


@dataclass(frozen=True)
class PlannedSource:
    """A checkpoint source with its checked options: it stands in for all steps."""

    name: str
    source: CheckpointSource[MethodConfig]
    config: MethodConfig


@dataclass(frozen=True)
class Plan:
    """The steps of every linear layer, a layer with none stays dense; or a checkpoint source."""

    steps: Mapping[str, tuple[PlannedStep, ...]]
    source: PlannedSource | None = None

    @property
    def methods(self) -> list[Method[MethodConfig] | BlockMethod[MethodConfig]]:
        """Every method of some step of some layer."""
        found = {step.name: step.method for steps in self.steps.values() for step in steps}
        return list(found.values())

    @property
    def needs(self) -> Statistic:
        """Everything that some step of some layer needs."""
        needs = Statistic.NOTHING
        for method in self.methods:
            needs |= method.needs
        return needs

    def describe(self, layers: list[str]) -> dict[str, object]:
        """The steps of some layers as plain data, for fingerprints and records."""
        return {layer: [step.describe() for step in self.steps[layer]] for layer in layers}


def make(spec: CompressSpec, shapes: Mapping[str, tuple[int, int]]) -> Plan:
    """Match a recipe's steps with a model's layers; ConfigError names the layers that do not."""
    source = _source(spec)
    if source:
        return Plan(dict.fromkeys(shapes, ()), source)
    default = _planned(spec.steps)
    overrides = {glob: _planned(steps) for glob, steps in spec.layers.items()}
    for glob in overrides:
        if not any(fnmatchcase(name, glob) for name in shapes):
            example = next(iter(shapes))
            msg = f"compress.layers: '{glob}' matches no layer; layers are called like '{example}'."
            raise ConfigError(msg)
    steps: dict[str, tuple[PlannedStep, ...]] = {}
    for name in shapes:
        if any(fnmatchcase(name, glob) for glob in spec.skip):
            steps[name] = ()
        else:
            matching = [planned for glob, planned in overrides.items() if fnmatchcase(name, glob)]
            steps[name] = matching[-1] if matching else default
    _check(steps, shapes)
    return Plan(steps)


def _source(spec: CompressSpec) -> PlannedSource | None:
    """The source of a recipe whose only step is one."""
    if len(spec.steps) != 1 or spec.layers:
        return None
    (step,) = spec.steps
    method = registry.get(step.method)
    if not isinstance(method, CheckpointSource):
        return None
    return PlannedSource(step.method, method, registry.configure(step.method, step.options))


def _planned(steps: tuple[Step, ...]) -> tuple[PlannedStep, ...]:
    planned = []
    for step in steps:
        method = registry.get(step.method)
        if isinstance(method, CheckpointSource):
            msg = (
                f"method '{step.method}' reads finished checkpoints: it can be a recipe's only "
                f"step, without `layers`, and none beside others."
            )
            raise ConfigError(msg)
        planned.append(
            PlannedStep(step.method, method, registry.configure(step.method, step.options))
        )
    return tuple(planned)


def _check(
    steps: Mapping[str, tuple[PlannedStep, ...]], shapes: Mapping[str, tuple[int, int]]
) -> None:
    problems: dict[str, list[str]] = {}
    for layer, planned in steps.items():
        for step in planned:
            problem = step.method.problem(shapes[layer], step.config)
            if problem:
                problems.setdefault(f"{step.name}: {problem}", []).append(layer)
    if problems:
        msg = " ".join(f"{problem}, in {shortened(names)}." for problem, names in problems.items())
        raise ConfigError(msg)


def shortened(names: list[str], what: str = "layers") -> str:
    """'a, b, c and 7 more layers'."""
    shown = ", ".join(names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more {what}" if more > 0 else shown
