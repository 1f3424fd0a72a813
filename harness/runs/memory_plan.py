"""How much memory a run takes at its peaks, from its sizes, before it is started.

Arithmetic that can be followed: what is held together at the fullest moment of each part of a run,
each thing with its bytes.  docs/scaling.md compares it with measured runs.  With a GPU what torch
computes with lies there, and the rest in the machine's memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from trinity.harness.accuracy import suites
from trinity.harness.checkpoints.dequantized import may_be_kept
from trinity.harness.compress.hidden import in_file
from trinity.harness.recipes.recipe import Recipe
from trinity.harness.records import available
from trinity.harness.runs import estimate, run_checks, tuning
from trinity.harness.runs.run import Run
from trinity.harness.store.spent import BENCH, COMPRESS, EVALUATE, LOWER
from trinity.lowering.geometry import Geometry
from trinity.methods.contract import Statistic
from trinity.methods.errors import MachineError
from trinity.methods.searching import SearchMethod

FLOAT, DOUBLE = 4, 8  # bytes
# Of a layer's weights in float32, what a method computes with beside them: scores and an order, or
# rotated weights, errors and a mask.
WORK_COPIES = 4
CODES = 1  # bytes of a weight that is compressed and not packed yet
AT_WORK = 100_000_000  # that libraries take once they compute: buffers of products, a heap's holes
# Of an export: torch.export, torch-mlir, and the text that they make of every block.  Read off
# models of 2, 10 and 30 blocks: docs/scaling.md.
EXPORT, EXPORT_BLOCK = 400_000_000, 18_000_000
# Of it the process keeps these.  Read off a model of 30 blocks; one of 78, which was killed while
# logits were compared, held no less.
LEFT, LEFT_BLOCK = 100_000_000, 7_000_000
WITHIN = 0.15  # of what is planned, measured peaks lie


@dataclass(frozen=True)
class Peak:
    """The fullest moment of a part of a run.  held: what is in memory then, and its bytes"""

    part: str
    moment: str
    held: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.held.values())


@dataclass(frozen=True)
class _Moment:
    """of: what it is a part of   host, computed: things held that lie in the machine's memory
    anyway, or where torch computes, and their bytes
    """

    part: str
    of: str
    host: Mapping[str, int]
    computed: Mapping[str, int]


def peaks(run: Run, here: int) -> list[Peak]:
    """Of every part that a run has, in the machine's memory.

    here: bytes that the process takes before it begins
    """
    libraries = {"libraries": here + AT_WORK}
    on_gpu = run.device.type != "cpu"
    return [
        Peak(at.part, at.of, {**libraries, **at.host, **({} if on_gpu else at.computed)})
        for at in _moments(run)
    ]


def gpu_peaks(run: Run) -> list[Peak]:
    """Of every part that a GPU does, in its memory, beside what CUDA itself takes."""
    if run.device.type == "cpu":
        return []
    return [Peak(at.part, at.of, at.computed) for at in _moments(run) if at.computed]


def _moments(run: Run) -> list[_Moment]:
    """The fullest of every part."""
    recipe, model = run.recipe, run.decoder.model
    outside = sum(p.nbytes for p in _outside(run))
    if run.plan.rotation and model.all_tied_weights_keys:
        outside *= 2  # they are no longer one tensor
    moments = [*_rotating(run, outside), *_compressing(run, outside), *_tuning(run)]
    fullest = max(moments, key=lambda moment: sum(moment[1].values()))
    found = [_Moment(COMPRESS, fullest[0], {}, fullest[1])]
    whole = {"the model in torch": _size(model.parameters())}
    compares = run_checks.compares(recipe) and run.plan.changes_weights
    dense = {"the dense model": whole["the model in torch"]} if compares else {}
    module = {"the module's parameters": _stored(run, outside)}
    if recipe.lower:
        found.append(_lowering(run, outside, module))
    if recipe.evaluate:
        windows = [suites.resolve(suite).window or 0 for suite in recipe.evaluate.suites]
        logits = 3 * max(windows, default=0) * model.config.vocab_size * FLOAT
        held = {**(whole if _in_torch(recipe) else {}), **dense}
        held["logits and their logarithms"] = logits
        held["logits that are remembered"] = _remembered(run, bool(dense))
        compiled = {} if _in_torch(recipe) else module
        found.append(_Moment(EVALUATE, "reading a window", compiled, held))
    if recipe.bench:
        spec, geometry = recipe.bench, Geometry.of(model.config)
        positions, sequences = spec.prompt + spec.new, max(spec.batch)
        numbers = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim
        held = whole | (dense if spec.baseline is not None else {})
        held["caches"] = sequences * positions * numbers * FLOAT
        compiled = module if recipe.lower else {}
        found.append(_Moment(BENCH, "timing all engines", compiled, held))
    return found


def _lowering(run: Run, outside: int, module: Mapping[str, int]) -> _Moment:
    """The fuller of exporting and of comparing logits, which reads a module's parameters."""
    blocks = len(run.decoder.blocks)
    layer = max(prod(shape) for shape in run.decoder.layer_shapes().values())
    both = {
        "embedding and head, read and stored": 3 * outside,
        "a layer, read, packed and compared": layer * (2 * CODES + 2 * FLOAT),
    }
    exporting = {"the export": EXPORT + EXPORT_BLOCK * blocks, **both}
    comparing = {"what is left of the export": LEFT + LEFT_BLOCK * blocks, **module, **both}
    moments = (("exporting", exporting), ("comparing logits", comparing))
    of, held = max(moments, key=lambda moment: sum(moment[1].values()))
    return _Moment(LOWER, of, held, {})


def check(found: Sequence[Peak], device: torch.device) -> None:
    """MachineError, before the work, where compression surely takes more than there is.

    Other parts, and a compression that a GPU does, are planned but never refused: what was said of
    them was compared with few measured runs, or with none.
    """
    total = available.total_bytes()
    for peak in found:
        if peak.part != COMPRESS or device.type != "cpu" or peak.total * (1 - WITHIN) <= total:
            continue
        held = ", ".join(f"{what} {size / 1e9:.2f} GB" for what, size in peak.held.items())
        msg = (
            f"{peak.part} would take {peak.total / 1e9:.1f} GB of memory while {peak.moment} "
            f"({held}), and this machine gives {total / 1e9:.1f} GB. Use `model.dtype: bfloat16`, "
            f"`compress.order: true-sequential`, or a method without a Hessian. Or take a machine "
            f"with more."
        )
        raise MachineError(msg)


def _stored(run: Run, outside: int) -> int:
    """Bytes of the parameters that a module reads: of a mapped file, so the system may drop them,
    and resident until it does.
    """
    numbers = sum(prod(shape) for shape in run.decoder.layer_shapes().values())
    return numbers * estimate.bits(run.recipe.compress) // 8 + outside


def _remembered(run: Run, compares: bool) -> int:
    """Bytes of what torch's models said of windows, kept for the next suite or row."""
    recipe, vocabulary = run.recipe, run.decoder.model.config.vocab_size
    row = estimate.text_tokens(recipe) if _in_torch(recipe) else 0
    dense = estimate.text_tokens(recipe, only_compared=True) if compares else 0
    return sum(min(may_be_kept(), tokens * vocabulary * FLOAT) for tokens in (row, dense))


def _in_torch(recipe: Recipe) -> bool:
    return recipe.evaluate is not None and recipe.evaluate.engine == "torch"


def _outside(run: Run) -> Iterator[nn.Parameter]:
    prefix = f"{run.decoder.family.blocks}."
    return (p for name, p in run.decoder.model.named_parameters() if not name.startswith(prefix))


def _size(parameters: Iterator[nn.Parameter]) -> int:
    return sum({id(p): p.nbytes for p in parameters}.values())


def _rotating(run: Run, outside: int) -> list[tuple[str, dict[str, int]]]:
    """The moment of the proof, which is in float32 and has a block of both models."""
    if run.plan.rotation is None:
        return []
    wider = FLOAT // _bytes(run)
    held = {
        "embedding and head, read and turned": 2 * wider * outside,
        "a block of both models": 2 * wider * _block(run),
    }
    return [("proving the rotation", held)]


def _compressing(run: Run, outside: int) -> list[tuple[str, dict[str, int]]]:
    """Moments of the walk, which holds one block."""
    decoder, plan = run.decoder, run.plan
    if plan.source or not any(plan.steps.values()):
        return [("storing a block", {"a block": _block(run), "embedding and head": outside})]
    drawn = run.recipe.calibration
    hidden = _hidden(run)
    block = {f"a block in {run.recipe.model.dtype}": _block(run), **hidden}
    moments = [("reading the text", {"embedding and head": outside, **hidden})]
    groups = [[decoder.layer_shapes()[name] for name in group] for group in _groups(run)]
    inputs = [group[0][1] for group in groups]
    sizes = [sum(map(prod, group)) for group in groups]
    at_once = [inputs] if plan.order == "block" else [[d_in] for d_in in inputs]
    if drawn is not None:
        sequence = drawn.seqlen * max(inputs) * (2 * FLOAT + DOUBLE)
        sums = max(_sums(run, of) for of in at_once)
        kept = drawn.samples * drawn.seqlen * FLOAT * sum(inputs)
        if plan.needs & Statistic.ACTIVATIONS:
            sums += kept
        held = {**block, "X^T X of its inputs": sums, "one sequence": sequence}
        moments.append(("collecting statistics", held))
    squared = sum(sizes) * FLOAT if plan.needs & Statistic.FISHER else 0
    if drawn is not None:
        moments += _before_the_walk(run, drawn.seqlen, sum(sizes), block)
    for index, group in enumerate(groups):
        held = dict(block)
        if squared:
            held["squared gradients"] = squared
        # In float32 a weight, its copy for the first step and the model's own are one tensor.
        copies = 0 if run.recipe.model.dtype == "float32" else FLOAT + _bytes(run)
        held["weights of one input"] = sizes[index] * copies
        square = _squares([inputs[index]])[0]
        if drawn is not None:
            # Those of linears that are done are gone.
            left = inputs[index:] if plan.order == "block" else [inputs[index]]
            held["X^T X of its inputs"] = _sums(run, left)
        held["what is compressed"] = sum(sizes[:index]) * CODES
        if plan.needs & Statistic.HESSIAN:
            moments.append(("factoring X^T X", {**held, "its factor, twice": 2 * square}))
            held["its factor"] = square
        held["what the methods compute"] = max(map(prod, group)) * FLOAT * WORK_COPIES
        moments.append(("solving", held))
        if estimate.decomposes(run.recipe.compress):
            svd = FLOAT * max(2 * prod(shape) + 5 * min(shape) ** 2 for shape in group)
            moments.append(("fitting an adapter", {**held, "singular vectors and values": svd}))
    return moments


def _before_the_walk(
    run: Run, seqlen: int, weights: int, block: Mapping[str, int]
) -> list[tuple[str, dict[str, int]]]:
    """Moments of passes over the whole model.

    weights: of all linears of a block   block: what the walk holds of it, and hidden states
    """
    plan, model, found = run.plan, run.decoder.model, []
    if any(isinstance(method, SearchMethod) for method in plan.methods):
        # Both models' logits, and their logarithms.
        logits = 4 * seqlen * model.config.vocab_size * FLOAT
        held = {"the model in torch": _size(model.parameters()), "logits": logits}
        found.append(("trying whole models", {**held, **_hidden(run)}))
    if plan.needs & Statistic.FISHER:
        # A gradient of each weight, its square's sum, and the weights in float32.
        found.append(("gradients of a block", {**block, "gradients": 3 * weights * FLOAT}))
    if plan.needs & Statistic.GRADIENTS:
        # Of one sequence, and the weights in float32; those of all sequences lie in a file.
        of_sequence = {**block, "gradients": 2 * weights * FLOAT}
        found.append(("gradients of a block, by sequence", of_sequence))
    return found


def _sums(run: Run, inputs: Sequence[int]) -> int:
    """Bytes of the second moments of some inputs, and of their means for each position."""
    needs, drawn = run.plan.needs, run.recipe.calibration
    matrices = 1 + sum(bool(needs & more) for more in (Statistic.HELD_OUT, Statistic.DRIFT))
    rows = drawn.seqlen if drawn is not None and needs & Statistic.X_MEAN_CLIPPED else 0
    return matrices * sum(_squares(inputs)) + rows * FLOAT * sum(inputs)


def _tuning(run: Run) -> list[tuple[str, dict[str, int]]]:
    """The moment of tuning a block.  What tuning a whole model takes is not counted."""
    work = tuning.work(run.recipe)
    if work is None or not work.by_block:
        return []
    shapes = run.decoder.layer_shapes()
    linears = [shapes[name] for name in run.decoder.layer_names(0)]
    width = run.decoder.model.config.hidden_size
    held = tuning.held(work, linears, width, _bytes(run))
    return [("tuning a block", {f"a block in {run.recipe.model.dtype}": _block(run), **held})]


def _groups(run: Run) -> list[tuple[str, ...]]:
    """Full names of the linears of the first block that share an input."""
    first = f"{run.decoder.family.blocks}.0."
    return [tuple(first + name for name in group) for group in run.decoder.family.groups]


def _squares(inputs: Sequence[int]) -> list[int]:
    return [d_in**2 * FLOAT for d_in in inputs]


def _hidden(run: Run) -> dict[str, int]:
    drawn = run.recipe.calibration
    if drawn is None:
        return {}
    width = run.decoder.model.config.hidden_size
    streams = 2 if run.plan.needs & Statistic.DRIFT else 1
    size = drawn.samples * drawn.seqlen * width * _bytes(run) * streams
    return {} if in_file(size, run.device) else {"hidden states": size}


def _block(run: Run) -> int:
    return max(_size(block.parameters()) for block in run.decoder.blocks)


def _bytes(run: Run) -> int:
    return run.decoder.dtype.itemsize
