"""How long a row takes and what it needs, from its sizes and what the machine can do at most.

Arithmetic that can be checked: operations (`operations.py`) over the rate of matrix products, bytes
over the read bandwidth, both measured (`harness/latency/ceilings.py`).  What no ceiling bounds
(Python, the compiler, tests of numbers) is a constant for each layer, block or row, read off runs
on two cores; docs/diary/cost.md compares with measured runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from trinity.harness.accuracy import suites
from trinity.harness.accuracy.suite import Suite, TextSuite
from trinity.harness.compress.activations import HELD_OUT_EVERY
from trinity.harness.latency.ceilings import Ceilings
from trinity.harness.recipes.recipe import BenchSpec, CompressSpec, Recipe, Step
from trinity.harness.runs import operations, run_checks, tuning
from trinity.harness.store.spent import BENCH, COMPRESS, EVALUATE, LOWER
from trinity.lowering.geometry import Geometry
from trinity.methods import registry
from trinity.methods.contract import Statistic
from trinity.methods.searching import Levels, Searched, SearchMethod

# A block is run twice: for the statistics, and again to hand its compressed outputs on.
CALIBRATION_PASSES = 2
# Of the products' rate that a forward in eager torch reaches: linears, attention, the head, and
# what is between them.  This and what follows: docs/diary/cost.md#counted-operations.
SHARE = 0.75
# For a logit of a text, of its log-probability, and of comparing it with the dense model's.
LOGIT_S, COMPARED_S = 4.5e-9, 8.5e-9
# Operations of one thread, in which LAPACK works, for m n^2 of a singular value decomposition,
# [m, n], n the less.
DECOMPOSED = 30.0
RANGES = 30.0  # multiplications in the time in which JSQ looks at a weight for one token
# Of a linear's Python, of each of its weights in a step or a report, of a block that is stored.
LAYER_S, WEIGHT_S, BLOCK_S = 0.01, 6e-8, 0.05
# Of a column that error feedback settles; of a number that statistics sum, beside X^T X.
COLUMN_S, SUMMED_S = 8e-5, 1.9e-8
EXPORT_S, EXPORT_BLOCK_S = 2.0, 0.4  # once a model
COMPILE_S, COMPILE_BLOCK_S = 4.0, 0.3
LOADED_S = 0.5  # an engine, in the process that weighs it
# First calls: of what compresses, and of what times; of a suite and a model that it reads.
START_S, READ_S = 0.35, 0.2
LIBRARIES_BYTES = 1_500_000_000  # resident, of torch, transformers and the compiler
FLOAT_BYTES = 4
WARM_UP = 3  # calls before those that are timed


@dataclass(frozen=True)
class Size:
    """Of a model.

    weights: that a token goes through   parameters: all of them   blocks: how many
    linears: numbers of every matrix of the blocks, and its inputs   vocabulary, hidden: of a token
    groups: linears of a block, [out, in], by the input that they share, in the order of execution
    attention: operations of a block for a pair of positions
    """

    weights: int
    parameters: int
    blocks: int
    linears: tuple[tuple[int, int], ...]
    vocabulary: int
    hidden: int
    groups: operations.Groups
    attention: int

    @property
    def in_blocks(self) -> int:
        """Numbers of all matrices of the blocks."""
        return sum(numbers for numbers, _ in self.linears)


@dataclass(frozen=True)
class Estimate:
    """Of one row or of several.

    seconds: by part of a run   disk, memory: bytes
    """

    seconds: dict[str, float]
    disk: int
    memory: int

    @property
    def total_s(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())


def size_of(folder: Path) -> Size:
    """Of the model whose configuration is in a folder."""
    # Imported here: it loads transformers' models.
    import torch

    from trinity.harness.models import families
    from trinity.harness.models.decoder import linear_shape, skeleton
    from trinity.harness.models.model_config import read_config

    config = read_config(folder)
    model, family = skeleton(config, torch.float32), families.get(config.model_type)
    block = model.get_submodule(f"{family.blocks}.0")
    parameters = {id(p): p for p in model.parameters()}
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    outside = {id(embedding), id(head)}
    linears = [p for key, p in parameters.items() if p.ndim == 2 and key not in outside]
    everything = sum(p.numel() for p in parameters.values())
    return Size(
        # The embedding is looked up, unless it is the head too.
        weights=everything - (0 if head is embedding else embedding.numel()),
        parameters=everything,
        blocks=config.num_hidden_layers,
        linears=tuple((p.numel(), p.shape[1]) for p in linears),
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        groups=[[linear_shape(block.get_submodule(n)) for n in group] for group in family.groups],
        # A query with a key, and their weight with a value.
        attention=4 * config.num_attention_heads * Geometry.of(config).head_dim,
    )


def tokens_of(recipe: Recipe) -> int:
    """Tokens that a row's model reads."""
    suites_of = recipe.evaluate.suites if recipe.evaluate else ()
    return _calibration_tokens(recipe) * CALIBRATION_PASSES + sum(
        suites.resolve(spec).tokens() for spec in suites_of
    )


def of_rows(recipes: Sequence[Recipe], size: Size, limits: Ceilings) -> Estimate:
    """All rows of a model, what they share counted once; of one, the run from an empty store."""
    rows = [of_row(recipe, size, limits) for recipe in recipes]
    parts = {part: sum(row.seconds[part] for row in rows) for part in rows[0].seconds}
    first = recipes[0]  # the dense model reads what rows are compared on once for all of them
    asked = _asked(first, only_compared=True)
    forwards = _forwards_s(size, operations.read_by(asked), limits.products(first.model.dtype))
    parts[EVALUATE] += forwards + READ_S * len(asked)
    if any(recipe.lower for recipe in recipes):
        parts[LOWER] += EXPORT_S + EXPORT_BLOCK_S * size.blocks
    dense = 0
    if any(map(run_checks.compares, recipes)):
        dense = size.parameters * FLOAT_BYTES
        if all(any(recipe.compress.steps) for recipe in recipes):  # it is no row of its own
            parts[COMPRESS] += BLOCK_S * size.blocks
            if any(recipe.lower and recipe.bench and recipe.bench.baseline for recipe in recipes):
                parts[LOWER] += COMPILE_S + COMPILE_BLOCK_S * size.blocks
    disk = dense + sum(row.disk for row in rows)
    return Estimate(parts, disk, max(row.memory for row in rows))


def of_row(recipe: Recipe, size: Size, limits: Ceilings) -> Estimate:
    """One row, without what it shares with others."""
    rate = limits.products(recipe.model.dtype)
    lowering = (COMPILE_S + COMPILE_BLOCK_S * size.blocks) if recipe.lower else 0.0
    seconds = {
        COMPRESS: START_S
        + _compress_s(recipe, size, rate, limits.products("float32"))
        + _adapters_s(recipe, size, limits.alone)
        + _search_s(recipe, size, rate, limits.products("float32"))
        + _tune_s(recipe, size, rate, limits.read),
        LOWER: lowering,
        EVALUATE: _forwards_s(size, operations.read_by(_asked(recipe)), rate)
        + _distributions_s(_asked(recipe), size.vocabulary)
        + READ_S * len(_asked(recipe)),
        BENCH: _bench_s(recipe.bench, size, rate, limits.read) if recipe.bench else 0.0,
    }
    return Estimate(seconds, _disk(recipe, size), _memory(recipe, size))


def _calibration_tokens(recipe: Recipe) -> int:
    text = recipe.calibration
    return text.samples * text.seqlen if text and any(recipe.compress.steps) else 0


def text_tokens(recipe: Recipe, *, only_compared: bool = False) -> int:
    """Of the windows of texts that are read, each once.

    only_compared: of suites that compare with the dense model, which reads as much
    """
    return sum(operations.windows(_asked(recipe, only_compared=only_compared)).values())


def _asked(recipe: Recipe, *, only_compared: bool = False) -> list[Suite]:
    """The suites, or those that compare with the dense model."""
    found = [suites.resolve(spec) for spec in recipe.evaluate.suites] if recipe.evaluate else []
    return [suite for suite in found if suite.needs_dense or not only_compared]


def _forwards_s(size: Size, read: operations.Read, rate: float) -> float:
    attention = size.attention * size.blocks
    return operations.forwards(size.weights, attention, read) / (SHARE * rate)


def _distributions_s(asked: Sequence[Suite], vocabulary: int) -> float:
    """Of suites on a text, each by itself: the model is asked once, its answers are read by all."""
    texts = [suite for suite in asked if isinstance(suite, TextSuite)]
    each = sum(s.tokens() * (COMPARED_S if s.needs_dense else LOGIT_S) for s in texts)
    return each * vocabulary


def _compress_s(recipe: Recipe, size: Size, rate: float, in_floats: float) -> float:
    """rate: of products in the model's type   in_floats: of float32, which methods compute in"""
    if not recipe.compress.steps:
        return BLOCK_S * size.blocks
    methods = [registry.get(step.method) for step in recipe.compress.steps]
    needs = [getattr(method, "needs", Statistic.NOTHING) for method in methods]
    calibrated = _calibrated_s(recipe, size, needs, rate, in_floats) if recipe.calibration else 0.0
    return BLOCK_S * size.blocks + calibrated + _solved_s(recipe, size, needs, in_floats)


def _calibrated_s(
    recipe: Recipe, size: Size, needs: Sequence[Statistic], rate: float, in_floats: float
) -> float:
    """Of forwards, and of what is summed over inputs.  needs: of each step"""
    text, tokens = recipe.calibration, _calibration_tokens(recipe)
    assert text is not None
    drift, held_out, fisher, gradients = (
        any(kind in need for need in needs)
        for kind in (Statistic.DRIFT, Statistic.HELD_OUT, Statistic.FISHER, Statistic.GRADIENTS)
    )
    passes = operations.calibrated(
        size.groups, size.blocks, size.attention, text, recipe.compress.order
    )
    forwards = (1 + drift) * passes
    # Once forwards, and with gradients by inputs and weights once more and twice backwards; by
    # sequence, with gradients by inputs as often and backwards, then by weights too.
    forwards += (4 * fisher + 7 * gradients) * 2.0 * size.in_blocks * tokens
    squares = operations.squared(size.groups, size.blocks, tokens)
    squares *= 1 + drift + held_out / HELD_OUT_EVERY
    summed = SUMMED_S * tokens * size.blocks * sum(group[0][1] for group in size.groups)
    return forwards / (SHARE * rate) + squares / in_floats + summed


def _solved_s(recipe: Recipe, size: Size, needs: Sequence[Statistic], in_floats: float) -> float:
    """Of methods and reports.  needs: of each step"""
    weights, text = size.in_blocks, recipe.calibration
    seconds = LAYER_S * len(size.linears) * len(needs) + WEIGHT_S * weights * (len(needs) + 1)
    work = operations.reported(size.groups, size.blocks) if text else 0.0
    for need in needs:
        if need & Statistic.HESSIAN:  # a factor, which linears with one input share, and a sweep
            work += size.blocks * sum(float(group[0][1]) ** 3 for group in size.groups)
            work += sum(2.0 * n * d_in for n, d_in in size.linears)
            seconds += COLUMN_S * sum(d_in for _, d_in in size.linears)
        if need & Statistic.X_MEAN_CLIPPED and text:
            work += RANGES * text.seqlen * weights
    return seconds + work / in_floats


def _adapters_s(recipe: Recipe, size: Size, alone: float) -> float:
    """Of the singular values of every layer's error.  alone: rate of products in one thread"""
    fitted = sum(_has_rank(step) for step in recipe.compress.steps)
    return fitted * sum(DECOMPOSED * n * min(d_in, n // d_in) for n, d_in in size.linears) / alone


def _search_s(recipe: Recipe, size: Size, rate: float, in_floats: float) -> float:
    """Of layers at each of their levels, and of the models that are made of them.

    rate: of products in the model's type   in_floats: of float32, which methods compute in
    """
    seconds = 0.0
    for tokens, levels in _searches(recipe, size):
        # The head is run for the model before compression too.
        weights = size.weights + size.vocabulary * size.hidden
        seconds += 2.0 * weights * tokens / (SHARE * rate)
        for (numbers, d_in), tried in zip(size.linears, levels.values(), strict=True):
            one = LAYER_S + WEIGHT_S * numbers + 2.0 * numbers * d_in / in_floats
            seconds += len(tried) * one
    return seconds


def _searches(recipe: Recipe, size: Size) -> list[tuple[int, Levels]]:
    """Of every step that searches, the tokens that it reads and the levels of all linears."""
    found, text = [], recipe.calibration
    for step, after in pairwise(recipe.compress.steps):
        method = registry.get(step.method)
        if text is None or not isinstance(method, SearchMethod):
            continue
        config = registry.configure(step.method, step.options)
        given = registry.configure(after.method, after.options).model_dump(mode="json")
        shapes = {str(at): (n // d_in, d_in) for at, (n, d_in) in enumerate(size.linears)}
        model = Searched(shapes, given, text.samples, text.seqlen)
        found.append((method.reads(model, config), method.levels(model, config)))
    return found


def _tune_s(recipe: Recipe, size: Size, rate: float, bandwidth: float) -> float:
    """rate: of products in the model's type"""
    work = tuning.work(recipe)
    if work is None:
        return 0.0
    weights = size.in_blocks if work.by_block else size.weights
    return tuning.seconds(work, weights, size.in_blocks, SHARE * rate, bandwidth)


def _bench_s(spec: BenchSpec, size: Size, rate: float, bandwidth: float) -> float:
    """Every engine at the speed of dense weights: the torch one has them, and the baseline."""
    engines = 2 + 2 * (spec.baseline is not None)
    prompt = 2.0 * size.weights * spec.prompt / (SHARE * rate)
    token = size.weights * FLOAT_BYTES / bandwidth
    calls = engines * (spec.repeats + WARM_UP) * sum(spec.batch)
    decoding = prompt + spec.new * token
    seconds = {"prefill": calls * prompt, "decode": calls * decoding}
    weighed = 2 * (LOADED_S + decoding) if "memory" in spec.suites else 0.0
    return START_S + weighed + sum(seconds.get(suite, 0.0) for suite in spec.suites)


def _disk(recipe: Recipe, size: Size) -> int:
    """A checkpoint, the same weights again as a module reads them, and levels of a search."""
    tried = sum(
        len(of) * numbers * FLOAT_BYTES
        for _, levels in _searches(recipe, size)
        for (numbers, _), of in zip(size.linears, levels.values(), strict=True)
    )
    blocks = size.in_blocks * bits(recipe.compress) // 8
    outside = (size.parameters - size.in_blocks) * FLOAT_BYTES
    return tried + (blocks + outside) * (2 if recipe.lower else 1)


def decomposes(spec: CompressSpec) -> bool:
    """Whether a step fits an adapter, by the singular values of each layer's error."""
    return any(_has_rank(step) for step in spec.steps)


def _has_rank(step: Step) -> bool:
    return hasattr(registry.configure(step.method, step.options), "rank")


def bits(spec: CompressSpec) -> int:
    """Of a weight whose layer has no pattern and no adapter."""
    found = [
        getattr(registry.configure(step.method, step.options), "bits", None) for step in spec.steps
    ]
    return min([bits for bits in found if bits is not None], default=8 * FLOAT_BYTES)


def _memory(recipe: Recipe, size: Size) -> int:
    """Libraries, the dense model, the row's own in torch and compiled, logits, hidden states."""
    models = 3 * size.parameters * FLOAT_BYTES
    windows = (
        [suites.resolve(s).window or 0 for s in recipe.evaluate.suites] if recipe.evaluate else []
    )
    # The logits, their logarithms, and those of the dense model.
    logits = 3 * max(windows, default=0) * size.vocabulary * FLOAT_BYTES
    hidden = 2 * _calibration_tokens(recipe) * size.hidden * FLOAT_BYTES
    return LIBRARIES_BYTES + models + logits + hidden
