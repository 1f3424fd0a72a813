"""Does a method keep the contract?  `check` runs it on small layers and lists what it breaks.

For plugin authors (`trinity methods check PACKAGE`) and for the methods of this package.  It judges
the contract, not the algorithm: a method that conforms may still be a bad one.
"""

from collections.abc import Mapping
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from trinity.methods import sample_layers
from trinity.methods.cache_trials import cache_violations
from trinity.methods.caching import CacheMethod
from trinity.methods.contract import (
    BlockMethod,
    BlockTask,
    CheckpointSource,
    LayerStats,
    Method,
    MethodConfig,
    ModelMethod,
    ModelTask,
    Reported,
    StoredTensors,
    needed,
)
from trinity.methods.declarations import (
    KINDS,
    Violation,
    attribute_violations,
    config_violations,
    told_once,
)
from trinity.methods.errors import TrinityError
from trinity.methods.formats import (
    NM,
    Adapted,
    CompressedWeight,
    Dense,
    Unstructured,
    format_of,
    pack,
    sparsity_of,
)
from trinity.methods.planning import PlanMethod
from trinity.methods.rotations import RotationMethod
from trinity.methods.sample_layers import SHAPES, prefixed, stats_tensors
from trinity.methods.search_trials import search_violations
from trinity.methods.searching import SearchMethod
from trinity.methods.transforms import TransformMethod, TransformTask
from trinity.methods.trials import (
    Run,
    called,
    rotation_violations,
    run_violations,
    scale_violations,
)


def check(
    method: object,
    *,
    options: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """What a method or a CheckpointSource breaks of the contract; empty if nothing.

    Each is told once, with the first sample that shows it and the number of others.
    options: as in a recipe, where the defaults (or the fields' `examples`) do not make a config
    tensors: a checkpoint for a CheckpointSource to read, as StoredTensors where it reads the
        folder's settings too; else its own `example()`; else one of 2:4 float weights is made,
        which it may refuse
    """
    violations = attribute_violations(method)
    if violations:
        return told_once(violations)
    assert isinstance(method, KINDS)
    config = sample_layers.example_config(method.config, options)
    if config is None:
        return [
            "config: no valid options could be guessed; give every required field a default or "
            "`examples`, or pass options to check"
        ]
    violations = config_violations(config)
    # The walker runs without gradients; a method that wants them turns them on itself.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        if isinstance(method, Method):
            violations += _method_violations(method, config)
        elif isinstance(method, BlockMethod):
            violations += _block_violations(method, config)
        elif isinstance(method, PlanMethod):
            violations += _plan_violations(method, config)
        elif isinstance(method, SearchMethod):
            violations += search_violations(method, config)
        elif isinstance(method, RotationMethod):
            violations += rotation_violations(method, config)
        elif isinstance(method, CacheMethod):
            violations += cache_violations(method, config)
        elif isinstance(method, TransformMethod):
            violations += _transform_violations(method, config)
        elif isinstance(method, ModelMethod):
            violations += _model_violations(method, config)
        else:
            violations += _source_violations(method, config, tensors)
    return told_once(violations)


def refusal(source: CheckpointSource[MethodConfig]) -> str | None:
    """What a source says of the checkpoint that `check` makes; None if it reads it, or fails.

    Of one that refuses it nothing was tried.
    """
    config = (
        None if _example(source) is not None else sample_layers.example_config(source.config, None)
    )
    given = StoredTensors(sample_layers.checkpoint())
    found = called(partial(source.load, given, config)) if config else None
    return str(found) if isinstance(found, TrinityError) else None


def _method_violations(method: Method[MethodConfig], config: MethodConfig) -> list[Violation]:
    found: list[Violation] = []
    refused: dict[str, str] = {}
    for shape in SHAPES:
        problem = called(partial(method.problem, shape, config))
        if problem is not None and not isinstance(problem, str):
            found.append(_no_text(problem, shape))
            continue
        if problem:
            refused[str(list(shape))] = problem
        for sample in sample_layers.layers(shape, needed(method, config)):
            for current in sample_layers.currents(sample.W):
                found += _sample_violations(method, sample, current, config, problem)
    return found if len(refused) < len(SHAPES) else [*found, _untried(refused)]


def _no_text(problem: object, shape: tuple[int, int]) -> Violation:
    said = repr(problem)
    if isinstance(problem, BaseException):
        said = f"raised {type(problem).__name__}: {problem}"
    return Violation(f"problem: gave {said} for {list(shape)}, expected a text or None")


def _untried(refused: Mapping[str, str]) -> Violation:
    """refused: layer or block -> why"""
    reason = next(iter(refused.values()))
    return Violation(
        f"nothing was tried: `problem` refuses {', '.join(refused)} ({reason}). Give options with "
        f"which it takes some"
    )


def _sample_violations(
    method: Method[MethodConfig],
    sample: sample_layers.Sample,
    current: CompressedWeight,
    config: MethodConfig,
    problem: str | None,
) -> list[Violation]:
    """What goes wrong on one layer, after one kind of earlier step.  problem: of this shape"""
    W, stats = sample.W, sample.stats
    shape = (W.shape[0], W.shape[1])
    first = isinstance(current, Dense)
    where = f"layer {list(shape)}, {sample.kind}, after {format_of(current).label}"
    found, result = run_violations(
        _runner(method, W, current, stats, config),
        {"W": W, **stats_tensors(stats), **prefixed("current", pack(current))},
        {"layer": shape},
        where,
        must_refuse=first and problem is not None,
        may_refuse=not first or problem is not None or sample.may_refuse,
    )
    pattern = getattr(config, "pattern", None)
    if isinstance(pattern, NM) and result and not found:
        found += _pattern_violations(result["layer"], pattern, where)
    random = sample.kind == sample_layers.RANDOM and first
    if isinstance(pattern, Unstructured) and random and result and not found:
        found += _share_violations(result["layer"], pattern, where)
    return found


def _pattern_violations(weight: CompressedWeight, pattern: NM, where: str) -> list[Violation]:
    """The option `pattern: N:M` was asked for: is the weight that, and are its zeros there?"""
    label = format_of(weight).label
    if format_of(weight).pattern != pattern:
        return [Violation(f"pattern {pattern} was asked for, the result is {label}", where)]
    base = weight.base if isinstance(weight, Adapted) else weight
    groups = base.dequantize().reshape(-1, pattern.m)
    if bool(((groups != 0).sum(-1) > pattern.n).any()):
        what = f"a group of {pattern.m} inputs has more than {pattern.n} nonzero weights"
        return [Violation(what, where)]
    return []


def _share_violations(
    weight: CompressedWeight, pattern: Unstructured, where: str
) -> list[Violation]:
    """The option `pattern: S%` was asked for: is that share of a random layer masked?"""
    label, kept = format_of(weight).label, weight.base if isinstance(weight, Adapted) else weight
    if format_of(weight).pattern != pattern:
        return [Violation(f"pattern {pattern} was asked for, the result is {label}", where)]
    found = sparsity_of(kept)
    # A row keeps whole weights; rules that look at a layer's rows differ from it by a little.
    if abs(found - pattern.sparsity) > 0.02 + 0.5 / weight.shape[1]:
        return [Violation(f"{pattern} was asked for, {found:.1%} of the weights are zero", where)]
    return []


def _block_violations(method: BlockMethod[MethodConfig], config: MethodConfig) -> list[Violation]:
    found: list[Violation] = []
    refused: dict[str, str] = {}
    samples = list(sample_layers.blocks(needed(method, config)))
    for sample in samples:
        task, problems = sample.task, []
        shapes = {name: (W.shape[0], W.shape[1]) for name, W in task.weights.items()}
        for shape in dict.fromkeys(shapes.values()):
            problem = called(partial(method.problem, shape, config))
            if problem is not None and not isinstance(problem, str):
                found.append(_no_text(problem, shape))
            elif problem:
                problems.append(problem)
        if problems:
            refused[sample.kind] = problems[0]
        wrong, _ = run_violations(
            lambda task=task: _weights_of(method.compress_block(task, config)),  # type: ignore[misc]  # mypy cannot infer a default's type
            _tensors_of(task),
            shapes,
            sample.kind,
            must_refuse=bool(problems),
            may_refuse=bool(problems) or sample.may_refuse,
        )
        found += wrong
    return found if len(refused) < len(samples) else [*found, _untried(refused)]


def _tensors_of(task: BlockTask | TransformTask) -> dict[str, Tensor]:
    """Everything that a method of blocks is given to read, by name."""
    tensors = {**prefixed("weights", task.weights)}
    for name, stats in task.stats.items():
        tensors |= prefixed(name, stats_tensors(stats))
    if isinstance(task, BlockTask):
        for name, weight in task.current.items():
            tensors |= prefixed(f"current.{name}", pack(weight))
    return tensors | {f"inputs.{i}": x for i, x in enumerate(task.inputs)}


def _transform_violations(
    method: TransformMethod[MethodConfig], config: MethodConfig
) -> list[Violation]:
    found: list[Violation] = []
    refused: dict[str, str] = {}
    tasks = list(sample_layers.transform_tasks(needed(method, config)))
    for where, task in tasks:
        shapes = {(W.shape[0], W.shape[1]) for W in task.weights.values()}
        problems = [called(partial(method.problem, shape, config)) for shape in sorted(shapes)]
        found += [
            _no_text(p, shape)
            for p, shape in zip(problems, sorted(shapes), strict=True)
            if p is not None and not isinstance(p, str)
        ]
        said = [p for p in problems if isinstance(p, str)]
        if said:
            refused[where] = said[0]
        run = partial(method.transform, task, config)
        widths = {fold: task.weights[fold.linears[0]].shape[1] for fold in task.folds}
        found += scale_violations(run, _tensors_of(task), widths, where, must_refuse=bool(said))
    return found if len(refused) < len(tasks) else [*found, _untried(refused)]


def _plan_violations(method: PlanMethod[MethodConfig], config: MethodConfig) -> list[Violation]:
    """Numbers of blocks of several kinds; what they give each layer is tried with those alone."""
    found: list[Violation] = []
    for where, task in sample_layers.transform_tasks(needed(method, config)):
        given = _tensors_of(task)
        before = {name: tensor.clone() for name, tensor in given.items()}
        run = partial(method.measure, task.weights, task.stats, config)
        first, again = called(run), called(run)
        if isinstance(first, BaseException):
            found.append(Violation(f"measure: raised {type(first).__name__}: {first}", where))
            continue
        if not isinstance(first, Mapping) or first.keys() != task.weights.keys():
            found.append(Violation("measure: gave no numbers for each layer of the block", where))
            continue
        values = [value for numbers in first.values() for value in dict(numbers).values()]
        if not all(isinstance(value, (int, float)) and isfinite(value) for value in values):
            found.append(Violation("measure: gave something that is no finite number", where))
        if first != again:
            found.append(Violation("measure: the same inputs gave other numbers", where))
        changed = [name for name, tensor in given.items() if not torch.equal(tensor, before[name])]
        found += [Violation(f"measure: changed its input {name}", where) for name in changed]
    return found


def _model_violations(method: ModelMethod[MethodConfig], config: MethodConfig) -> list[Violation]:
    mixed = _tried_on(sample_layers.model_task(), method, config, "a model of four linears")
    dense = sample_layers.model_task(dense=True)
    return mixed + _tried_on(dense, method, config, "a model of four linears of floats")


def _tried_on(
    task: ModelTask, method: ModelMethod[MethodConfig], config: MethodConfig, where: str
) -> list[Violation]:
    tensors = {"sequences": task.sequences}
    for name, weight in task.current.items():
        tensors |= prefixed(name, pack(weight))
    shapes = {name: weight.shape for name, weight in task.current.items()}
    found, _ = run_violations(
        lambda: _weights_of(method.compress_model(task, config)),
        tensors,
        shapes,
        where,
        # What gives weights another format may ask for floats.
        may_refuse=not config.keeps_formats and where.endswith("four linears"),
    )
    tuned = called(lambda: _weights_of(method.compress_model(task, config)))
    if not config.keeps_formats:
        return found
    if isinstance(tuned, Mapping) and tuned.keys() == shapes.keys() and not found:
        found += [
            Violation(
                f"{name} came as {format_of(weight).label} and left as "
                f"{format_of(tuned[name]).label}",
                where,
            )
            for name, weight in task.current.items()
            if format_of(tuned[name]) != format_of(weight)
        ]
    return found


def _source_violations(
    source: CheckpointSource[MethodConfig],
    config: MethodConfig,
    tensors: Mapping[str, Tensor] | None,
) -> list[Violation]:
    own = _example(source)
    if isinstance(own, BaseException):
        return [Violation(f"example: raised {type(own).__name__}: {own}")]
    if own is not None and not isinstance(own, Mapping):
        said = f"example: gave a {type(own).__name__}, expected a mapping of names to tensors"
        return [Violation(said)]
    given = next(found for found in (tensors, own, sample_layers.checkpoint()) if found is not None)
    stored = given if isinstance(given, StoredTensors) else StoredTensors(given)
    found, _ = run_violations(
        partial(source.load, stored, config),
        given,
        None,
        "a checkpoint",
        # What the source reads is its own affair; a checkpoint made here may not be that.
        may_refuse=tensors is None and own is None,
    )
    return found


def _example(source: CheckpointSource[MethodConfig]) -> object:
    """The checkpoint that a source brings to be tried on, or why not; None if it brings none."""
    make = getattr(source, "example", None)
    return called(make) if callable(make) else None


def _runner(
    method: Method[MethodConfig],
    W: Tensor,
    current: CompressedWeight,
    stats: LayerStats,
    config: MethodConfig,
) -> Run:
    def run() -> Mapping[str, CompressedWeight]:
        made = method.compress(W, current, stats, config)
        return {"layer": made.weight if isinstance(made, Reported) else made}

    return run


def _weights_of(made: Mapping[str, CompressedWeight | Reported]) -> Any:
    """Without what is told beside them; whatever else a plugin gives as it is, hence Any."""
    if not isinstance(made, Mapping):
        return made
    return {name: w.weight if isinstance(w, Reported) else w for name, w in made.items()}
