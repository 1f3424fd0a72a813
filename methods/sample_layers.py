"""Small layers, earlier results and options to try a method on: what conformance runs, and what
`trinity methods list` takes a method's formats from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from trinity.methods.caching import CacheMethod
from trinity.methods.contract import (
    STATISTICS,
    BlockMethod,
    BlockTask,
    CheckpointSource,
    LayerStats,
    MethodConfig,
    ModelMethod,
    ModelTask,
    Reported,
    Statistic,
    needed,
)
from trinity.methods.declarations import Registered
from trinity.methods.errors import TrinityError
from trinity.methods.formats import (
    NM,
    Adapted,
    Coded,
    CompressedWeight,
    Dense,
    Quantized,
    RowCoded,
    Sparse,
    VectorCoded,
    WeightFormat,
    WithOutliers,
    format_of,
)
from trinity.methods.planning import PlanMethod
from trinity.methods.rotations import RotationMethod
from trinity.methods.searching import SearchMethod
from trinity.methods.tensors import clipped
from trinity.methods.transforms import Fold, TransformMethod, TransformTask

SHAPES = ((16, 128), (8, 256), (1, 128), (128, 16), (24, 40), (5, 7), (3, 1))
NUMERIC_SHAPES = ((16, 128), (24, 40))
TOKENS = 48
RANDOM = "random weights"
# Tried in turn for options that have no default and declare no examples.
PLAUSIBLE: tuple[object, ...] = ("2:4", 4, 0.5, "float16", True)


@dataclass(frozen=True, eq=False)
class Sample:
    """A layer to try a method on.

    kind: in words   W: [out, in]   may_refuse: a clear error is as good as a result
    """

    kind: str
    W: Tensor
    stats: LayerStats
    may_refuse: bool = False


@dataclass(frozen=True, eq=False)
class BlockSample:
    """A block to try a method on.

    kind: in words   may_refuse: a clear error is as good as a result
    """

    kind: str
    task: BlockTask
    may_refuse: bool = False


def example_config(
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


def layers(shape: tuple[int, int], needs: Statistic) -> Iterator[Sample]:
    """Layers as models have them, and the degenerate ones that they have too.

    The last ones are numerically hard, and tried on two shapes only: a result or a clear error.
    """
    d_in = shape[1]
    W, X = torch.randn(shape), torch.randn(TOKENS + d_in, d_in)
    out = shape[0]
    stats = statistics(X, needs, out)
    yield Sample(RANDOM, W, stats)
    dead, X_dead = W.clone(), X.clone()
    dead[0], X_dead[:, 0] = 0, 0
    yield Sample("a zero row and a dead input", dead, statistics(X_dead, needs, out))
    yield Sample("a transposed weight", torch.randn(d_in, shape[0]).T, stats)
    yield Sample("all weights zero", torch.zeros(shape), stats)
    yield Sample("all weights equal", torch.full(shape, 0.25), stats)
    if shape not in NUMERIC_SHAPES:
        return
    few = statistics(X[: d_in // 4], needs, out)
    yield Sample("fewer tokens than inputs", W, few, may_refuse=True)
    yield Sample("one calibration token", W, statistics(X[:1], needs, out), may_refuse=True)
    nothing = statistics(torch.zeros_like(X), needs, out)
    yield Sample("every input dead", W, nothing, may_refuse=True)
    for dtype in (torch.bfloat16, torch.float16):
        kind = f"{str(dtype).removeprefix('torch.')} weights"
        yield Sample(kind, W.to(dtype), stats, may_refuse=True)


def statistics(X: Tensor, needs: Statistic, out: int) -> LayerStats:
    """Only what a method asks for: it must not count on more.  X: [tokens, in], of a layer with
    `out` outputs
    """
    held_out = X[::4]
    dense = X + 0.1 * X.roll(1, 0)  # what the model before compression would have given
    cut = clipped(X)  # all tokens are one sequence
    return LayerStats(
        tokens=X.shape[0],
        tokens_held_out=held_out.shape[0] if Statistic.HELD_OUT in needs else 0,
        x_norm=X.square().sum(0).sqrt() if Statistic.X_NORM in needs else None,
        x_mean_abs=X.abs().mean(0) if Statistic.X_MEAN_ABS in needs else None,
        H=second_moment(X) if Statistic.HESSIAN in needs else None,
        X=X if Statistic.ACTIVATIONS in needs else None,
        H_held_out=second_moment(held_out) if Statistic.HELD_OUT in needs else None,
        x_max_abs=X.abs().amax(0) if Statistic.X_MAX_ABS in needs else None,
        fisher=fisher_like(X, out) if Statistic.FISHER in needs else None,
        gradients=gradients_like(X, out) if Statistic.GRADIENTS in needs else None,
        H_drift=2 / len(X) * (dense - X).T @ X if Statistic.DRIFT in needs else None,
        x_norm_clipped=cut.square().sum(0).sqrt() if Statistic.X_NORM_CLIPPED in needs else None,
        x_max_abs_clipped=cut.abs().amax(0) if Statistic.X_MAX_ABS_CLIPPED in needs else None,
        X_mean_clipped=cut if Statistic.X_MEAN_CLIPPED in needs else None,
    )


def fisher_like(X: Tensor, out: int) -> Tensor:
    """Squared gradients as layers have them: an input that is never there has none.

    X: [tokens, in]  ->  [out, in]
    """
    return torch.linspace(0.5, 2, out)[:, None] * X.square().mean(0)


def gradients_like(X: Tensor, out: int) -> Tensor:
    """Gradients of a few sequences, each as a layer's is: one by its outputs times its inputs.

    X: [tokens, in]  ->  [samples, out, in]
    """
    return torch.stack(
        [torch.randn(out, len(some)) @ some / len(some) for some in torch.split(X, 8)]
    )


def second_moment(X: Tensor) -> Tensor:
    """H of inputs.  X: [tokens, in]  ->  [in, in]"""
    return 2 / X.shape[0] * X.T @ X


def stats_tensors(stats: LayerStats) -> dict[str, Tensor]:
    """The statistics that are there, by name."""
    values = {name: getattr(stats, name) for name in STATISTICS.values()}
    return {name: value for name, value in values.items() if value is not None}


def currents(W: Tensor) -> Iterator[CompressedWeight]:
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
    nf4 = torch.randint(0, 16, (out, d_in), dtype=torch.uint8)
    yield Coded(nf4, torch.full((1, 1), 0.1), "nf4")
    by_row = RowCoded(nf4 % 8, torch.linspace(-1, 1, 8).repeat(out, 1))
    yield by_row
    vectors = torch.linspace(-1, 1, 16)[:, None].expand(-1, d_in)[None].contiguous()
    yield VectorCoded(nf4[:, :1, None].contiguous(), vectors, torch.ones(out, 1))
    yield WithOutliers(by_row, torch.zeros(out, 1, dtype=torch.int16), torch.full((out, 1), 2.0))


def blocks(needs: Statistic) -> Iterator[BlockSample]:
    """Blocks as models have them, and the degenerate ones, each `x + gelu(x up^T) down^T`."""
    yield BlockSample("a block of two linears", block_task(needs))
    yield BlockSample("a block of other widths", block_task(needs, (24, 40)))
    task = block_task(needs, dead=True)
    yield BlockSample("a block with a zero row and a dead input", task)
    zero = {name: torch.zeros(128, 128) for name in ("mlp.up", "mlp.down")}
    yield BlockSample("a block of zeros", block_task(needs, weights=zero))
    one = block_task(needs, tokens=1)
    yield BlockSample("a block and one token of each sequence", one, may_refuse=True)
    for index, kind in enumerate(("quantized", "adapted", "sparse", "sparse and quantized"), 1):
        task = block_task(needs)
        current = {name: list(currents(W))[index] for name, W in task.weights.items()}
        task = replace(task, current=current)
        yield BlockSample(f"a block that is {kind} already", task, may_refuse=True)


def block_task(
    needs: Statistic,
    widths: tuple[int, int] = (128, 128),
    *,
    tokens: int = TOKENS // 2,
    dead: bool = False,
    weights: Mapping[str, Tensor] | None = None,
) -> BlockTask:
    """`x + gelu(x up^T) down^T`.

    widths: of the block and inside   tokens: of each of two sequences
    dead: a row of each weight is zero, and so is an input   weights: random if None
    """
    outer, inner = widths
    sizes = {"mlp.up": (inner, outer), "mlp.down": (outer, inner)}
    if weights is None:
        weights = {name: torch.randn(size) / 11 for name, size in sizes.items()}
    inputs = tuple(torch.randn(tokens, outer) for _ in range(2))
    if dead:
        for values in (*weights.values(), *(x.T for x in inputs)):
            values[0] = 0

    def hidden(up: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x @ up.T)

    def forward(weight: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return x + hidden(weight["mlp.up"], x) @ weight["mlp.down"].T

    X = torch.cat(inputs)
    seen = {"mlp.up": X, "mlp.down": hidden(weights["mlp.up"], X)}
    return BlockTask(
        weights=weights,
        current={name: Dense(W) for name, W in weights.items()},
        stats={name: statistics(x, needs, sizes[name][0]) for name, x in seen.items()},
        inputs=inputs,
        forward=forward,
    )


def transform_tasks(needs: Statistic) -> Iterator[tuple[str, TransformTask]]:
    """Blocks as models have them, and degenerate ones, in words; both linears may be scaled."""
    yield "a block of two linears", transform_task(block_task(needs))
    yield "a block of other widths", transform_task(block_task(needs, (24, 40)))
    yield (
        "a block with a zero row and a dead input",
        transform_task(block_task(needs, dead=True)),
    )
    zero = {name: torch.zeros(128, 128) for name in ("mlp.up", "mlp.down")}
    yield "a block of zeros", transform_task(block_task(needs, weights=zero))
    yield "a block and one token of each sequence", transform_task(block_task(needs, tokens=1))


def transform_task(task: BlockTask) -> TransformTask:
    """The same block before compression."""
    folds = (Fold(("mlp.up",), "norm", "norm"), Fold(("mlp.down",), "mlp.up", "linear"))
    return TransformTask(task.weights, task.stats, folds, task.inputs, task.forward)


def model_task(*, dense: bool = False) -> ModelTask:
    """Linears in a row that guess the next of 32 tokens; one weight of every kind, or floats."""
    W = torch.randn(32, 32) / 6
    current = dict(zip("pqrs", [Dense(W)] * 4 if dense else currents(W), strict=False))
    table = torch.randn(32, 32)

    def loss(weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        x = table[ids[:-1]]
        for weight in weights.values():
            x = x + torch.tanh(x @ weight.T)
        return torch.nn.functional.cross_entropy(x @ table.T, ids[1:])

    return ModelTask(current, torch.randint(0, 32, (3, 12)), loss, lambda _: W.clone())


def checkpoint() -> dict[str, Tensor]:
    """Two layers that are 2:4, dense with zeros."""
    mask = (torch.arange(128) % 4 < 2).repeat(16, 1)
    return {f"layers.{i}.weight": torch.randn(16, 128) * mask for i in range(2)}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under longer names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def example_format(method: Registered) -> WeightFormat | None:
    """What a method makes of a [128, 256] layer with its default (or guessed) options.

    None for a checkpoint source, whose formats are the file's, for a method that tunes weights in
    the format they have, for one that compresses nothing, and where no sample is accepted.
    """
    config = example_config(method.config, None)
    before = (TransformMethod, PlanMethod, SearchMethod, RotationMethod, CacheMethod)
    nothing = (CheckpointSource, ModelMethod, *before)
    if config is None or isinstance(method, nothing):
        return None
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        if isinstance(method, BlockMethod):
            return _format_of_block(method, config)
        sample = next(layers((128, 256), needed(method, config)))
        for current in currents(sample.W):
            try:
                made = method.compress(sample.W, current, sample.stats, config)
                return format_of(made.weight if isinstance(made, Reported) else made)
            except TrinityError:
                continue
    return None


def _format_of_block(
    method: BlockMethod[MethodConfig], config: MethodConfig
) -> WeightFormat | None:
    # Wide enough that a group of 128 is not the whole row.
    task = block_task(needed(method, config), (256, 256))
    try:
        made = next(iter(method.compress_block(task, config).values()))
        return format_of(made.weight if isinstance(made, Reported) else made)
    except TrinityError:
        return None
