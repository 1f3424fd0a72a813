"""Does a method keep the contract?  `check` runs it on small layers and lists what it breaks.

For plugin authors (`trinity methods check PACKAGE`) and for the methods of this package.  It judges
the contract, not the algorithm: a method that conforms may still be a bad one.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice, product
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from trinity.methods.contract import (
    BlockMethod,
    BlockTask,
    CheckpointSource,
    LayerStats,
    Method,
    MethodConfig,
    Statistic,
)
from trinity.methods.errors import ConfigError
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

SHAPES = ((16, 128), (8, 256), (1, 128), (128, 16), (24, 40), (5, 7), (3, 1))
MAX_BITS = 64.0  # twice what plain float32 takes
TOKENS = 48
# Tried in turn for options that have no default and declare no examples.
PLAUSIBLE: tuple[object, ...] = ("2:4", 4, 0.5, "float16", True)
Run = Callable[[], Mapping[str, CompressedWeight]]


def check(
    method: object,
    *,
    options: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """What a Method, BlockMethod or CheckpointSource breaks of the contract; empty if nothing.

    options: as in a recipe, where the defaults (or the fields' `examples`) do not make a config
    tensors: a checkpoint for a CheckpointSource to read, else one of 2:4 float weights is made
    """
    violations = _attribute_violations(method)
    if violations:
        return violations
    assert isinstance(method, (Method, BlockMethod, CheckpointSource))
    config = _example_config(method.config, options)
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
        else:
            violations += _source_violations(method, config, tensors)
    return list(dict.fromkeys(violations))


def _attribute_violations(method: object) -> list[str]:
    if isinstance(method, type):
        return [f"{method.__name__} is a class; register an instance of it"]
    if not isinstance(method, (Method, BlockMethod, CheckpointSource)):
        return [
            f"{type(method).__name__} lacks attributes of a Method (name, paper, config, needs, "
            f"problem, compress), of a BlockMethod (compress_block) or of a CheckpointSource "
            f"(parts, load)"
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
    if not isinstance(method, CheckpointSource) and not isinstance(needs, Statistic):
        found.append(f"needs: {needs!r} is not a Statistic")
    if isinstance(method, CheckpointSource):
        parts: object = method.parts
        if not isinstance(parts, tuple) or not parts or not all(type(p) is str for p in parts):
            found.append(f"parts: {parts!r} is not a tuple of the last words of tensor names")
    return found


def _example_config(
    schema: type[MethodConfig], options: Mapping[str, Any] | None
) -> MethodConfig | None:
    """A valid config: of the given options, or of guesses for what has no default."""
    if options is not None:
        try:
            return schema.model_validate(dict(options))
        except ValidationError:
            return None
    required = {name: field for name, field in schema.model_fields.items() if field.is_required()}
    guesses = product(*(field.examples or PLAUSIBLE for field in required.values()))
    for values in islice(guesses, 10_000):
        try:
            return schema.model_validate(dict(zip(required, values, strict=True)))
        except ValidationError:
            continue
    return None


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
        for kind, W, stats in _layers(shape, method.needs):
            where = f"layer {list(shape)}, {kind}"
            for current in _currents(W):
                run = _runner(method, W, current, stats, config)
                first = isinstance(current, Dense)
                found += _run_violations(
                    run,
                    {"W": W, **_stats_tensors(stats), **_prefixed("current", pack(current))},
                    {"layer": shape},
                    f"{where}, after {format_of(current).label}",
                    must_refuse=first and problem is not None,
                    may_refuse=not first or problem is not None,
                )
    if not accepted:
        shapes = ", ".join(str(list(shape)) for shape in SHAPES)
        found.append(f"problem: refuses every layer that was tried ({shapes})")
    return found


def _block_violations(method: BlockMethod[MethodConfig], config: MethodConfig) -> list[str]:
    found = []
    shape = (128, 128)
    problem = _call(partial(method.problem, shape, config))
    if problem is not None and not isinstance(problem, str):
        found.append(f"problem: gave {problem!r} for {list(shape)}, expected a text or None")
    task = _block_task(method.needs)
    tensors = {**_prefixed("weights", task.weights)}
    for name, stats in task.stats.items():
        tensors |= _prefixed(name, _stats_tensors(stats))
    tensors |= {f"inputs.{i}": x for i, x in enumerate(task.inputs)}
    found += _run_violations(
        partial(method.compress_block, task, config),
        tensors,
        dict.fromkeys(task.weights, shape),
        "a block of two linears",
        must_refuse=problem is not None,
        may_refuse=problem is not None,
    )
    return found


def _source_violations(
    source: CheckpointSource[MethodConfig],
    config: MethodConfig,
    tensors: Mapping[str, Tensor] | None,
) -> list[str]:
    given = dict(_checkpoint() if tensors is None else tensors)
    return _run_violations(
        partial(source.load, given, config),
        given,
        None,
        "a checkpoint",
        # What the source reads is its own affair; a checkpoint made here may not be that.
        may_refuse=tensors is None,
    )


def _run_violations(
    run: Run,
    inputs: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, int]] | None,
    where: str,
    *,
    must_refuse: bool = False,
    may_refuse: bool = False,
) -> list[str]:
    """Run twice and once more on a foreign default device; look at results and at inputs."""
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    torch.manual_seed(1)
    first = _call(run)
    if isinstance(first, ConfigError) and may_refuse:
        return []
    if isinstance(first, Exception):
        return [f"{where}: raised {type(first).__name__}: {first}"]
    if must_refuse:
        return [f"{where}: `problem` reports one, but the layer was compressed; raise ConfigError"]
    found = _result_violations(first, shapes, where)
    found += [
        f"{where}: changed its input {name}"
        for name, tensor in inputs.items()
        if not torch.equal(tensor, before[name])
    ]
    if found:
        return found
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
    return found


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
    return lambda: {"layer": method.compress(W, current, stats, config)}


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


def _layers(shape: tuple[int, int], needs: Statistic) -> Iterator[tuple[str, Tensor, LayerStats]]:
    """Layers as models have them, and the degenerate ones that they have too."""
    W, X = torch.randn(shape), torch.randn(TOKENS, shape[1])
    yield "random weights", W, _stats(X, needs)
    W, X = W.clone(), X.clone()
    W[0], X[:, 0] = 0, 0
    yield "a zero row and a dead input", W, _stats(X, needs)
    yield "all weights zero", torch.zeros(shape), _stats(X, needs)
    yield "all weights equal", torch.full(shape, 0.25), _stats(X, needs)
    yield "a transposed weight", torch.randn(shape[1], shape[0]).T, _stats(X, needs)


def _stats(X: Tensor, needs: Statistic) -> LayerStats:
    """Only what a method asks for: it must not count on more."""
    return LayerStats(
        tokens=X.shape[0],
        x_norm=X.square().sum(0).sqrt() if Statistic.X_NORM in needs else None,
        x_mean_abs=X.abs().mean(0) if Statistic.X_MEAN_ABS in needs else None,
        H=2 / X.shape[0] * X.T @ X if Statistic.HESSIAN in needs else None,
        X=X if Statistic.ACTIVATIONS in needs else None,
    )


def _stats_tensors(stats: LayerStats) -> dict[str, Tensor]:
    values = {name: getattr(stats, name) for name in ("x_norm", "x_mean_abs", "H", "X")}
    return {name: value for name, value in values.items() if value is not None}


def _currents(W: Tensor) -> Iterator[CompressedWeight]:
    """What an earlier step may have made of a weight; `Dense` comes first."""
    out, d_in = W.shape
    dense = Dense(W)
    codes = torch.randint(-8, 8, (out, d_in), dtype=torch.int8)
    quantized = Quantized(codes, torch.full((1, 1), 0.1), None, 4)
    yield dense
    yield quantized
    yield Adapted(quantized, torch.ones(out, 1), torch.ones(1, d_in))
    if d_in % 4 == 0:
        mask = (torch.arange(d_in) % 4 < 2).repeat(out, 1)
        yield Sparse(dense, mask, NM(2, 4))
        yield Sparse(quantized, mask, NM(2, 4))


def _block_task(needs: Statistic) -> BlockTask:
    """`x + gelu(x up^T) down^T`."""
    weights = {name: torch.randn(128, 128) / 11 for name in ("mlp.up", "mlp.down")}
    inputs = tuple(torch.randn(TOKENS // 2, 128) for _ in range(2))

    def hidden(up: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x @ up.T)

    def forward(weight: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return x + hidden(weight["mlp.up"], x) @ weight["mlp.down"].T

    X = torch.cat(inputs)
    seen = {"mlp.up": X, "mlp.down": hidden(weights["mlp.up"], X)}
    return BlockTask(
        weights=weights,
        current={name: Dense(W) for name, W in weights.items()},
        stats={name: _stats(x, needs) for name, x in seen.items()},
        inputs=inputs,
        forward=forward,
    )


def _checkpoint() -> dict[str, Tensor]:
    mask = (torch.arange(128) % 4 < 2).repeat(16, 1)
    return {f"layers.{i}.weight": torch.randn(16, 128) * mask for i in range(2)}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
