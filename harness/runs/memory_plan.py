"""How much memory a run takes at its peaks, from its sizes, before it is started.

Arithmetic that can be followed: what is held together at the fullest moment of each part of a run,
each thing with its bytes.  docs/scaling.md compares it with measured runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from trinity.harness.accuracy import suites
from trinity.harness.compress.hidden import SHARE_IN_MEMORY
from trinity.harness.records import available
from trinity.harness.runs import run_checks
from trinity.harness.runs.run import Run
from trinity.harness.store.spent import BENCH, COMPRESS, EVALUATE, LOWER
from trinity.lowering.geometry import Geometry
from trinity.methods.contract import Statistic
from trinity.methods.errors import MachineError

FLOAT, DOUBLE = 4, 8  # bytes
# Of a layer's weights in float32, what a method computes with beside them: scores and an order, or
# rotated weights, errors and a mask.
WORK_COPIES = 4
CODES = 1  # bytes of a weight that is compressed and not packed yet
AT_WORK = 100_000_000  # that libraries take once they compute: buffers of products, a heap's holes
COMPILER = 400_000_000  # resident, of one module: docs/scaling.md
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


def peaks(run: Run, here: int) -> list[Peak]:
    """Of every part that a run has.  here: bytes that the process takes before it begins"""
    recipe, model = run.recipe, run.decoder.model
    libraries = {"libraries": here + AT_WORK}
    outside = sum(p.nbytes for p in _outside(run))
    found = [_fullest(COMPRESS, libraries, _compressing(run, outside))]
    whole = {"the model in torch": _size(model.parameters())}
    compares = run_checks.compares(recipe) and any(run.plan.steps.values())
    both = whole | ({"the dense model": whole["the model in torch"]} if compares else {})
    if recipe.lower:
        layer = max(prod(shape) for shape in run.decoder.layer_shapes().values())
        # Of the comparison: a layer as it is read, packed, and multiplied with.
        one = {"a layer, read and packed": layer * (2 * CODES + 2 * FLOAT)}
        beside = {"embedding and head": outside, "the same in narrower types": outside // 2}
        moments = [("comparing logits", beside | one), ("compiling", {"the compiler": COMPILER})]
        found.append(_fullest(LOWER, libraries, moments))
    if recipe.evaluate:
        windows = [suites.resolve(suite).window or 0 for suite in recipe.evaluate.suites]
        logits = 3 * max(windows, default=0) * model.config.vocab_size * FLOAT
        moments = [("reading a window", both | {"logits and their logarithms": logits})]
        found.append(_fullest(EVALUATE, libraries, moments))
    if recipe.bench:
        spec, geometry = recipe.bench, Geometry.of(model.config)
        positions, sequences = spec.prompt + spec.new, max(spec.batch)
        numbers = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim
        caches = {"caches": sequences * positions * numbers * FLOAT}
        moments = [("timing all engines", both | caches)]
        found.append(_fullest(BENCH, libraries, moments))
    return found


def check(found: Sequence[Peak]) -> None:
    """MachineError, before the work, where a part surely takes more than there is."""
    fullest = max(found, key=lambda peak: peak.total)
    total = available.total_bytes()
    if fullest.total * (1 - WITHIN) <= total:
        return
    held = ", ".join(f"{what} {size / 1e9:.2f} GB" for what, size in fullest.held.items())
    msg = (
        f"{fullest.part} would take {fullest.total / 1e9:.1f} GB of memory while {fullest.moment} "
        f"({held}), and this machine gives {total / 1e9:.1f} GB. {_instead(fullest)}"
    )
    raise MachineError(msg)


def _instead(peak: Peak) -> str:
    advice = {
        COMPRESS: "Use `model.dtype: bfloat16`, `compress.order: true-sequential`, or a method "
        "without a Hessian.",
        LOWER: "Use `model.dtype: bfloat16`.",
        EVALUATE: "Leave out suites that compare with the dense model, or use `model.dtype: "
        "bfloat16`.",
        BENCH: "Leave out `bench.baseline`, or lower bench.batch.",
    }
    return f"{advice[peak.part]} Or take a machine with more."


def _outside(run: Run) -> Iterator[nn.Parameter]:
    prefix = f"{run.decoder.family.blocks}."
    return (p for name, p in run.decoder.model.named_parameters() if not name.startswith(prefix))


def _size(parameters: Iterator[nn.Parameter]) -> int:
    return sum({id(p): p.nbytes for p in parameters}.values())


def _fullest(
    part: str, always: Mapping[str, int], moments: Sequence[tuple[str, Mapping[str, int]]]
) -> Peak:
    peaks_of = [Peak(part, moment, {**always, **held}) for moment, held in moments]
    return max(peaks_of, key=lambda peak: peak.total)


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
    matrices = 2 if plan.needs & Statistic.HELD_OUT else 1  # of an input's second moments
    if drawn is not None:
        wide = drawn.seqlen * max(inputs) * (2 * FLOAT + DOUBLE)
        sums = matrices * max(sum(_squares(of)) for of in at_once)
        kept = drawn.samples * drawn.seqlen * FLOAT * sum(inputs)
        if plan.needs & Statistic.ACTIVATIONS:
            sums += kept
        held = {**block, "X^T X of its inputs": sums, "one sequence": wide}
        moments.append(("collecting statistics", held))
    for index, group in enumerate(groups):
        held = dict(block)
        # In float32 a weight, its copy for the first step and the model's own are one tensor.
        wide = 0 if run.recipe.model.dtype == "float32" else FLOAT + _bytes(run)
        held["weights of one input"] = sizes[index] * wide
        square = _squares([inputs[index]])[0]
        if drawn is not None:
            # Those of linears that are done are gone.
            left = inputs[index:] if plan.order == "block" else [inputs[index]]
            held["X^T X of its inputs"] = matrices * sum(_squares(left))
        held["what is compressed"] = sum(sizes[:index]) * CODES
        if plan.needs & Statistic.HESSIAN:
            moments.append(("factoring X^T X", {**held, "its factor, twice": 2 * square}))
            held["its factor"] = square
        held["what the methods compute"] = max(map(prod, group)) * FLOAT * WORK_COPIES
        moments.append(("solving", held))
    return moments


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
    size = drawn.samples * drawn.seqlen * width * _bytes(run)
    in_file = size > SHARE_IN_MEMORY * available.available_bytes()
    return {} if in_file else {"hidden states": size}


def _block(run: Run) -> int:
    return max(_size(block.parameters()) for block in run.decoder.blocks)


def _bytes(run: Run) -> int:
    return run.decoder.dtype.itemsize
