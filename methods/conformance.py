"""Does a method keep the contract?  `check` runs it on small layers and lists what it breaks.

For plugin authors (`trinity methods check PACKAGE`) and for the methods of this package.  It judges
the contract, not the algorithm: a method that conforms may still be a bad one.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from trinity.methods import sample_layers
from trinity.methods.contract import (
    BlockMethod,
    CheckpointSource,
    LayerStats,
    Method,
    MethodConfig,
    ModelMethod,
    Reported,
    Statistic,
)
from trinity.methods.errors import ConfigError, TrinityError
from trinity.methods.formats import (
    NM,
    Adapted,
    CompressedWeight,
    Dense,
    Quantized,
    Sparse,
    bits_per_weight,
    format_of,
    pack,
    unpack,
)
from trinity.methods.sample_layers import SHAPES, prefixed, stats_tensors

MAX_BITS = 64.0  # twice what plain float32 takes
KINDS = (Method, BlockMethod, ModelMethod, CheckpointSource)
Run = Callable[[], Mapping[str, CompressedWeight]]


def check(
    method: object,
    *,
    options: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """What a method or a CheckpointSource breaks of the contract; empty if nothing.

    options: as in a recipe, where the defaults (or the fields' `examples`) do not make a config
    tensors: a checkpoint for a CheckpointSource to read, else one of 2:4 float weights is made
    """
    violations = _attribute_violations(method)
    if violations:
        return violations
    assert isinstance(method, KINDS)
    config = sample_layers.example_config(method.config, options)
    if config is None:
        return [
            "config: no valid options could be guessed; give every required field a default or "
            "`examples`, or pass options to check"
        ]
    violations = _config_violations(config)
    # The walker runs without gradients; a method that wants them turns them on itself.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        if isinstance(method, Method):
            violations += _method_violations(method, config)
        elif isinstance(method, BlockMethod):
            violations += _block_violations(method, config)
        elif isinstance(method, ModelMethod):
            violations += _model_violations(method, config)
        else:
            violations += _source_violations(method, config, tensors)
    return list(dict.fromkeys(violations))


def _attribute_violations(method: object) -> list[str]:
    if isinstance(method, type):
        return [f"{method.__name__} is a class; register an instance of it"]
    if not isinstance(method, KINDS):
        return [
            f"{type(method).__name__} lacks attributes of a Method (name, paper, config, needs, "
            f"problem, compress), of a BlockMethod (compress_block), of a ModelMethod "
            f"(compress_model) or of a CheckpointSource (parts, load)"
        ]
    # A protocol says that attributes are there, not what they hold.
    names = ("name", "paper", "config", "needs")
    name, paper, config, needs = (getattr(method, attribute, None) for attribute in names)
    found = []
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        found.append(f"name: {name!r} is not lower-case words joined by hyphens")
    if not isinstance(paper, str) or not paper:
        found.append(f"paper: {paper!r} does not say where the method is from")
    if not isinstance(config, type) or not issubclass(config, MethodConfig):
        found.append(f"config: {config!r} is not a subclass of MethodConfig")
    without = isinstance(method, (CheckpointSource, ModelMethod))
    if not without and not isinstance(needs, Statistic):
        found.append(f"needs: {needs!r} is not a Statistic")
    if isinstance(method, CheckpointSource):
        parts: object = method.parts
        if not isinstance(parts, tuple) or not parts or not all(type(p) is str for p in parts):
            found.append(f"parts: {parts!r} is not a tuple of the last words of tensor names")
    return found


def _config_violations(config: MethodConfig) -> list[str]:
    schema, found = type(config), []
    data = config.model_dump(mode="json")
    try:
        schema.model_validate({**data, "no_such_option": 1})
        found.append("config: accepts unknown keys (extra='forbid' was overridden)")
    except ValidationError:
        pass
    name = next(iter(schema.model_fields), "no_such_option")
    try:
        setattr(config, name, getattr(config, name, 1))
        found.append("config: can be changed after it was made (frozen=True was overridden)")
    except (ValidationError, AttributeError):
        pass
    try:
        if schema.model_validate(data) != config:
            found.append("config: is another one after model_dump(mode='json') and back")
    except ValidationError as error:
        found.append(f"config: its own model_dump(mode='json') is refused ({error})")
    return found


def _method_violations(method: Method[MethodConfig], config: MethodConfig) -> list[str]:
    found, accepted = [], 0
    for shape in SHAPES:
        problem = _call(partial(method.problem, shape, config))
        if problem is not None and not isinstance(problem, str):
            found.append(f"problem: gave {problem!r} for {list(shape)}, expected a text or None")
            continue
        accepted += problem is None
        for sample in sample_layers.layers(shape, method.needs):
            for current in sample_layers.currents(sample.W):
                found += _sample_violations(method, sample, current, config, problem)
    if not accepted:
        shapes = ", ".join(str(list(shape)) for shape in SHAPES)
        found.append(f"problem: refuses every layer that was tried ({shapes})")
    return found


def _sample_violations(
    method: Method[MethodConfig],
    sample: sample_layers.Sample,
    current: CompressedWeight,
    config: MethodConfig,
    problem: str | None,
) -> list[str]:
    """What goes wrong on one layer, after one kind of earlier step.  problem: of this shape"""
    W, stats = sample.W, sample.stats
    shape = (W.shape[0], W.shape[1])
    first = isinstance(current, Dense)
    where = f"layer {list(shape)}, {sample.kind}, after {format_of(current).label}"
    found, result = _run_violations(
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
    return found


def _pattern_violations(weight: CompressedWeight, pattern: NM, where: str) -> list[str]:
    """The option `pattern: N:M` was asked for: is the weight that, and are its zeros there?"""
    label = format_of(weight).label
    if format_of(weight).pattern != pattern:
        return [f"{where}: pattern {pattern} was asked for, the result is {label}"]
    base = weight.base if isinstance(weight, Adapted) else weight
    groups = base.dequantize().reshape(-1, pattern.m)
    if bool(((groups != 0).sum(-1) > pattern.n).any()):
        return [f"{where}: a group of {pattern.m} inputs has more than {pattern.n} nonzero weights"]
    return []


def _block_violations(method: BlockMethod[MethodConfig], config: MethodConfig) -> list[str]:
    found = []
    shape = (128, 128)
    problem = _call(partial(method.problem, shape, config))
    if problem is not None and not isinstance(problem, str):
        found.append(f"problem: gave {problem!r} for {list(shape)}, expected a text or None")
    task = sample_layers.block_task(method.needs)
    tensors = {**prefixed("weights", task.weights)}
    for name, stats in task.stats.items():
        tensors |= prefixed(name, stats_tensors(stats))
    tensors |= {f"inputs.{i}": x for i, x in enumerate(task.inputs)}
    wrong, _ = _run_violations(
        partial(method.compress_block, task, config),
        tensors,
        dict.fromkeys(task.weights, shape),
        "a block of two linears",
        must_refuse=problem is not None,
        may_refuse=problem is not None,
    )
    return found + wrong


def _model_violations(method: ModelMethod[MethodConfig], config: MethodConfig) -> list[str]:
    task = sample_layers.model_task()
    tensors = {"sequences": task.sequences}
    for name, weight in task.current.items():
        tensors |= prefixed(name, pack(weight))
    shapes = {name: weight.shape for name, weight in task.current.items()}
    found, _ = _run_violations(
        partial(method.compress_model, task, config), tensors, shapes, "a model of four linears"
    )
    tuned = _call(partial(method.compress_model, task, config))
    if isinstance(tuned, Mapping) and tuned.keys() == shapes.keys() and not found:
        found += [
            f"a model of four linears: {name} came as {format_of(weight).label} and left as "
            f"{format_of(tuned[name]).label}"
            for name, weight in task.current.items()
            if format_of(tuned[name]) != format_of(weight)
        ]
    return found


def _source_violations(
    source: CheckpointSource[MethodConfig],
    config: MethodConfig,
    tensors: Mapping[str, Tensor] | None,
) -> list[str]:
    given = dict(sample_layers.checkpoint() if tensors is None else tensors)
    found, _ = _run_violations(
        partial(source.load, given, config),
        given,
        None,
        "a checkpoint",
        # What the source reads is its own affair; a checkpoint made here may not be that.
        may_refuse=tensors is None,
    )
    return found


def _run_violations(
    run: Run,
    inputs: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, int]] | None,
    where: str,
    *,
    must_refuse: bool = False,
    may_refuse: bool = False,
) -> tuple[list[str], Mapping[str, CompressedWeight] | None]:
    """Run twice and once more on a foreign default device; look at results and at inputs.

    -> violations, and the result if there is one without
    """
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    torch.manual_seed(1)
    first = _call(run)
    if may_refuse and _is_clear(first, ConfigError if must_refuse else TrinityError):
        return [], None
    if isinstance(first, Exception):
        return [f"{where}: raised {type(first).__name__}: {first}"], None
    if must_refuse:
        said = "`problem` reports one, but the layer was compressed; raise ConfigError"
        return [f"{where}: {said}"], None
    found = _result_violations(first, shapes, where)
    found += [
        f"{where}: changed its input {name}"
        for name, tensor in inputs.items()
        if not torch.equal(tensor, before[name])
    ]
    if found:
        return found, None
    torch.manual_seed(2)
    again = _call(run)
    if isinstance(again, Exception) or not _same_bytes(first, again):
        found.append(
            f"{where}: the same inputs gave another result; take a seed in the config instead of "
            f"the global generator"
        )
    with torch.device("meta"):
        elsewhere = _call(run)
    if isinstance(elsewhere, Exception) or not _same_bytes(first, elsewhere):
        found.append(f"{where}: makes tensors on the default device instead of `W.device`")
    return found, None if found else first


def _is_clear(result: object, kind: type[TrinityError]) -> bool:
    """Whether it is an error of a kind that the method itself raised on purpose."""
    # The formats refuse NaN too: a method that computes one has not said what is wrong.
    return isinstance(result, kind) and "holds NaN or infinity" not in str(result)


def _result_violations(
    result: object, shapes: Mapping[str, tuple[int, int]] | None, where: str
) -> list[str]:
    if not isinstance(result, Mapping):
        return [
            f"{where}: gave a {type(result).__name__}, expected a mapping of compressed weights"
        ]
    if shapes is not None and set(result) != set(shapes):
        return [f"{where}: gave weights for {sorted(result)}, expected {sorted(shapes)}"]
    found = []
    for name, weight in result.items():
        if not isinstance(weight, (Dense, Quantized, Sparse, Adapted)):
            found.append(f"{where}: {name} is a {type(weight).__name__}, not a CompressedWeight")
            continue
        if shapes is not None and weight.shape != shapes[name]:
            found.append(f"{where}: {name} has shape {list(weight.shape)}")
        if not bool(torch.isfinite(weight.dequantize()).all()):
            found.append(f"{where}: {name} decodes to NaN or infinity")
        if not _same_bytes({name: weight}, {name: unpack(format_of(weight), pack(weight))}):
            found.append(f"{where}: {name} is another weight after it was stored and read")
        if bits_per_weight(weight) > MAX_BITS and min(weight.shape) > 8:
            bits = bits_per_weight(weight)
            found.append(f"{where}: {name} takes {bits:.1f} bits per weight, more than {MAX_BITS}")
    return found


def _call(run: Callable[[], Any]) -> Any:
    """The result, or the exception: a plugin may return and raise anything, hence Any."""
    try:
        return run()
    except Exception as error:
        return error


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


def _same_bytes(one: Mapping[str, CompressedWeight], other: Mapping[str, CompressedWeight]) -> bool:
    if one.keys() != other.keys():
        return False
    for name, weight in one.items():
        ours, theirs = pack(weight), pack(other[name])
        if format_of(weight) != format_of(other[name]) or ours.keys() != theirs.keys():
            return False
        for key, tensor in ours.items():
            if tensor.device != theirs[key].device or not torch.equal(tensor, theirs[key]):
                return False
    return True
