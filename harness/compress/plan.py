"""What is done to which layer, checked against the layers' shapes before a weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any

from trinity.harness.compress import contracts
from trinity.harness.recipes.recipe import CompressSpec, Order, Step, TuneMode, TuneSpec
from trinity.methods import registry
from trinity.methods.caching import CacheMethod
from trinity.methods.contract import (
    OF_LOSS,
    BlockMethod,
    CheckpointSource,
    Method,
    MethodConfig,
    ModelMethod,
    Statistic,
    needed,
)
from trinity.methods.errors import ConfigError
from trinity.methods.formats import InputFormat
from trinity.methods.planning import PlanMethod
from trinity.methods.rotations import RotationMethod
from trinity.methods.searching import SearchMethod
from trinity.methods.transforms import TransformMethod

NAMES_SHOWN = 3
StepMethod = (
    Method[MethodConfig]
    | BlockMethod[MethodConfig]
    | TransformMethod[MethodConfig]
    | PlanMethod[MethodConfig]
    | SearchMethod[MethodConfig]
)
STEPS = (Method, BlockMethod, TransformMethod, PlanMethod, SearchMethod)
# What cannot be one of several steps, and why.
ELSEWHERE = {
    CheckpointSource: "reads finished checkpoints: it can be a recipe's only step, without "
    "`layers`, and none beside others",
    ModelMethod: "tunes a whole compressed model and cannot be a compression step; name it under "
    "`compress.tune`",
    RotationMethod: "turns the whole model before anything else: it can only be the first of "
    "`compress.steps`",
    CacheMethod: "keeps keys and values and compresses no weight; name it under `compress.cache`",
}


@dataclass(frozen=True)
class PlannedStep:
    """A method with its checked options."""

    name: str
    method: StepMethod
    config: MethodConfig

    @property
    def needs(self) -> Statistic:
        """What it asks for, with these options."""
        return needed(self.method, self.config)

    @property
    def plans(self) -> bool:
        """Whether it gives the step after it its options, before anything is compressed."""
        return isinstance(self.method, (PlanMethod, SearchMethod))

    @property
    def transforms(self) -> bool:
        """Whether it changes the layers of a block together, before they are compressed."""
        return isinstance(self.method, TransformMethod)

    def changed(self, options: Mapping[str, Any]) -> "PlannedStep":
        """The same step with some other options."""
        before = self.config.model_dump(mode="json")
        return replace(self, config=registry.configure(self.name, {**before, **options}))

    def describe(self) -> dict[str, object]:
        """Name and every option, defaults included, as plain data."""
        return {"method": self.name, **self.config.model_dump(mode="json")}


@dataclass(frozen=True)
class PlannedRotation:
    """A method that turns the residual stream before all steps, with its checked options."""

    name: str
    method: RotationMethod[MethodConfig]
    config: MethodConfig

    def describe(self) -> dict[str, object]:
        """Name and every option, defaults included, as plain data."""
        return {"method": self.name, **self.config.model_dump(mode="json")}


@dataclass(frozen=True)
class PlannedTune:
    """A method for the compressed model, as a whole or by block, with its checked options.

    mode: where a method of blocks gets their inputs from; None for the whole model
    """

    name: str
    method: ModelMethod[MethodConfig] | BlockMethod[MethodConfig]
    config: MethodConfig
    mode: TuneMode | None = None

    def describe(self) -> dict[str, object]:
        """Name and every option, defaults included, as plain data."""
        mode = {"mode": self.mode} if self.mode else {}
        return {"method": self.name, **mode, **self.config.model_dump(mode="json")}


@dataclass(frozen=True)
class PlannedSource:
    """A checkpoint source with its checked options: it stands in for all steps."""

    name: str
    source: CheckpointSource[MethodConfig]
    config: MethodConfig


@dataclass(frozen=True)
class Plan:
    """The steps of every linear layer, a layer with none stays dense; or a checkpoint source.

    order: whether a block's linears are calibrated all at once or input by input
    inputs: how inputs are rounded, by layer; no entry leaves a layer's inputs alone
    tune: what is done to the compressed model at the end
    told: what planning steps measured and gave, by layer, for its report
    rotation: what is done to the whole model before
    """

    steps: Mapping[str, tuple[PlannedStep, ...]]
    source: PlannedSource | None = None
    order: Order = "block"
    inputs: Mapping[str, InputFormat] = field(default_factory=dict)
    tune: PlannedTune | None = None
    told: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)
    rotation: PlannedRotation | None = None

    @property
    def changes_weights(self) -> bool:
        """Whether a step does something to some linear, or to all of them."""
        return self.rotation is not None or any(self.steps.values())

    @property
    def planners(self) -> list[PlannedStep]:
        """Steps that give other steps their options, in order."""
        found: list[PlannedStep] = []
        for steps in self.steps.values():
            found += [step for step in steps if step.plans and step not in found]
        return found

    def after(self, step: PlannedStep, layer: str) -> PlannedStep:
        """The step of a layer that a planning step gives options to."""
        steps = self.steps[layer]
        return steps[steps.index(step) + 1]

    def tried(
        self, step: PlannedStep, layer: str, options: Mapping[str, Any]
    ) -> tuple[PlannedStep, ...]:
        """What compresses a layer up to the step after a planning step, which has these options."""
        steps = self.steps[layer]
        place = steps.index(step)
        before = [step for step in steps[:place] if not step.plans]
        return (*before, steps[place + 1].changed(options))

    def with_options(
        self,
        step: PlannedStep,
        options: Mapping[str, Mapping[str, Any]],
        measured: Mapping[str, Mapping[str, float]],
    ) -> "Plan":
        """With other options of the step after a planning step.

        options: by layer   measured: what they follow from, for reports
        """
        steps, told = dict(self.steps), dict(self.told)
        for layer, given in options.items():
            own = list(steps[layer])
            place = own.index(step) + 1
            own[place] = own[place].changed(given)
            steps[layer] = tuple(own)
            said = {"method": step.name, **measured.get(layer, {}), **given}
            told[layer] = (*told.get(layer, ()), said)
        return replace(self, steps=steps, told=told)

    @property
    def methods(self) -> list[StepMethod]:
        """Every method of some step of some layer."""
        found = {step.name: step.method for steps in self.steps.values() for step in steps}
        return list(found.values())

    @property
    def needs(self) -> Statistic:
        """Everything that some step of some layer needs while the model is compressed."""
        needs = Statistic.NOTHING
        for step in (step for steps in self.steps.values() for step in steps if not step.plans):
            needs |= step.needs
        return needs

    @property
    def names(self) -> list[str]:
        """Of every method that takes part: steps, source and tuning."""
        whole = (self.rotation, self.source, self.tune)
        others = [planned.name for planned in whole if planned]
        return [*(method.name for method in self.methods), *others]

    def described(self) -> dict[str, object]:
        """Everything that is done before tuning, as plain data."""
        turned = {"rotation": self.rotation.describe()} if self.rotation else {}
        return {**turned, "steps": self.describe(sorted(self.steps))}

    def describe(self, layers: list[str]) -> dict[str, object]:
        """The steps of some layers as plain data, for fingerprints and records."""
        return {layer: [step.describe() for step in self.steps[layer]] for layer in layers}


def make(spec: CompressSpec, shapes: Mapping[str, tuple[int, int]]) -> Plan:
    """Match a recipe's steps with a model's layers; ConfigError names the layers that do not."""
    inputs = _inputs(spec, shapes)
    source = _source(spec)
    if source:
        if spec.tune:
            msg = (
                f"compress.tune: {source.name} reads weights as they were compressed elsewhere, "
                f"and they are not tuned here. Leave `tune` out."
            )
            raise ConfigError(msg)
        unchanged: dict[str, tuple[PlannedStep, ...]] = dict.fromkeys(shapes, ())
        _check(unchanged, inputs, shapes)
        return Plan(unchanged, source, inputs=inputs)
    rotation = _rotation(spec.steps)
    default = _planned(spec.steps[1:] if rotation else spec.steps)
    overrides = {glob: _planned(steps) for glob, steps in spec.layers.items()}
    for glob in overrides:
        if not any(fnmatchcase(name, glob) for name in shapes):
            example = next(iter(shapes))
            msg = f"compress.layers: '{glob}' matches no layer; layers are called like '{example}'."
            raise ConfigError(msg)
    steps: dict[str, tuple[PlannedStep, ...]] = {}
    for name in shapes:
        if _skipped(name, spec):
            steps[name] = ()
        else:
            matching = [planned for glob, planned in overrides.items() if fnmatchcase(name, glob)]
            steps[name] = matching[-1] if matching else default
    _check(steps, inputs, shapes)
    tuned = _planned_tune(spec.tune) if spec.tune else None
    made = Plan(steps, order=spec.order, inputs=inputs, tune=tuned, rotation=rotation)
    if spec.order == "true-sequential":
        _check_layerwise(made)
    _check_whole_model(made)
    return made


def _inputs(spec: CompressSpec, shapes: Mapping[str, tuple[int, int]]) -> dict[str, InputFormat]:
    """How the inputs of each layer are rounded when the model runs; none is left alone."""
    if spec.inputs is None:
        return {}
    kept = (name for name in shapes if not _skipped(name, spec))
    return dict.fromkeys(kept, spec.inputs.format)


def _check_layerwise(plan: Plan) -> None:
    whole = sorted({m.name for m in plan.methods if isinstance(m, BlockMethod)})
    if whole:
        msg = (
            f"compress.order true-sequential: method {', '.join(whole)} compresses all linears of "
            f"a block together. Use `order: block`, or methods that take one layer at a time."
        )
        raise ConfigError(msg)


def _check_whole_model(plan: Plan) -> None:
    """A tuned model runs with the norms that it had, and its weights are asked for as they were."""
    every = [step for steps in plan.steps.values() for step in steps]
    asking = {step.name for step in every if step.needs & OF_LOSS}
    changing = {step.name for step in every if step.transforms}
    if changing and asking:
        msg = (
            f"compress.steps: {', '.join(sorted(asking))} asks for gradients of the model as it "
            f"was, and {', '.join(sorted(changing))} changes its weights. Leave one of the two out."
        )
        raise ConfigError(msg)
    if changing and plan.tune and isinstance(plan.tune.method, ModelMethod):
        msg = (
            f"compress.tune: {plan.tune.name} runs the whole model with the norms that it had, and "
            f"{', '.join(sorted(changing))} changes them. Leave one of the two out."
        )
        raise ConfigError(msg)


def _planned_tune(spec: TuneSpec) -> PlannedTune:
    method, mode = registry.get(spec.method), spec.mode
    if isinstance(method, BlockMethod) and not method.needs:
        mode = mode or "offline"
    elif not isinstance(method, ModelMethod):
        msg = (
            f"compress.tune: method '{spec.method}' does not tune a compressed model. Make it one "
            f"of `compress.steps`."
        )
        raise ConfigError(msg)
    elif mode:
        msg = (
            f"compress.tune: {spec.method} tunes the whole model at once, and `mode: {mode}` says "
            f"where single blocks get their inputs from. Leave `mode` out."
        )
        raise ConfigError(msg)
    config = registry.configure(spec.method, spec.options)
    return PlannedTune(spec.method, method, config, mode)


def _skipped(name: str, spec: CompressSpec) -> bool:
    return any(fnmatchcase(name, glob) for glob in spec.skip)


def _source(spec: CompressSpec) -> PlannedSource | None:
    """The source of a recipe whose only step is one."""
    if len(spec.steps) != 1 or spec.layers:
        return None
    (step,) = spec.steps
    method = registry.get(step.method)
    if not isinstance(method, CheckpointSource):
        return None
    return PlannedSource(step.method, method, registry.configure(step.method, step.options))


def _rotation(steps: tuple[Step, ...]) -> PlannedRotation | None:
    """The first step of a recipe, if it turns the whole model."""
    if not steps:
        return None
    method = registry.get(steps[0].method)
    if not isinstance(method, RotationMethod):
        return None
    config = registry.configure(steps[0].method, steps[0].options)
    return PlannedRotation(steps[0].method, method, config)


def _planned(steps: tuple[Step, ...]) -> tuple[PlannedStep, ...]:
    planned: list[PlannedStep] = []
    for step in steps:
        method = registry.get(step.method)
        for kind, reason in ELSEWHERE.items():
            if isinstance(method, kind):
                raise ConfigError(f"method '{step.method}' {reason}.")
        assert isinstance(method, STEPS)
        if isinstance(method, TransformMethod) and any(not p.transforms for p in planned):
            msg = (
                f"method '{step.method}' changes the layers of a block together, as they were "
                f"before compression: put it before '{planned[-1].name}' in the steps."
            )
            raise ConfigError(msg)
        planned.append(
            PlannedStep(step.method, method, registry.configure(step.method, step.options))
        )
    for done, following in zip_longest(planned, planned[1:]):
        if done.plans and (following is None or following.plans):
            msg = (
                f"method '{done.name}' gives the step after it its options: put it before the "
                f"step that it plans."
            )
            raise ConfigError(msg)
    return tuple(planned)


def _check(
    steps: Mapping[str, tuple[PlannedStep, ...]],
    inputs: Mapping[str, InputFormat],
    shapes: Mapping[str, tuple[int, int]],
) -> None:
    problems: dict[str, list[str]] = {}
    for layer, planned in steps.items():
        for step in planned:
            problem = contracts.problem(step.method, layer, shapes[layer], step.config)
            if problem:
                problems.setdefault(f"{step.name}: {problem}", []).append(layer)
    for layer, rounded in inputs.items():
        if problem := rounded.problem(shapes[layer]):
            problems.setdefault(f"compress.{problem}", []).append(layer)
    if problems:
        msg = " ".join(f"{problem}, in {shortened(names)}." for problem, names in problems.items())
        raise ConfigError(msg)


def shortened(names: list[str], what: str = "layers") -> str:
    """'a, b, c and 7 more layers'."""
    shown = ", ".join(names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more {what}" if more > 0 else shown
