"""The model walk: block by block, statistics from the blocks already compressed.

One walker serves every method and every family.  Only one block's weights and the activations
between two blocks are in memory.  A finished block is a stage of the store, so a killed run resumes
at the next one: the activations that it needs are made again by running the finished blocks, which
is cheaper than keeping them on disk, and gives the same bits because both ways decode the stored
block.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trinity.harness.activations import collected
from trinity.harness.latency.stopwatch import Stopwatch
from trinity.harness.models import Decoder, oriented, set_weight, weight_of
from trinity.harness.plan import Plan
from trinity.harness.store import StageStore, read_json, write_json
from trinity.methods.contract import BlockMethod, BlockTask, LayerStats, Reported
from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    CompressedWeight,
    Dense,
    WeightFormat,
    bits_per_weight,
    format_of,
    pack,
    sparsity_of,
    unpack,
)

logger = logging.getLogger(__name__)

WEIGHTS, LAYERS, TIMING = "block.safetensors", "layers.json", "timing.json"


@dataclass(frozen=True, eq=False)
class BlockCall:
    """How the model calls one block, apart from the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Walk:
    """Compresses the blocks of one model in order."""

    def __init__(
        self,
        decoder: Decoder,
        plan: Plan,
        calibration: Tensor | None,
        store: StageStore,
        inputs: Mapping[str, Any],
    ) -> None:
        """calibration: int64 [samples, seqlen], or None.  inputs: what all stages depend on."""
        self.decoder, self.plan, self.calibration = decoder, plan, calibration
        self.store, self.inputs = store, inputs
        self._hidden: list[Tensor] = []
        self._calls: list[BlockCall] = []
        self._ready_for = -1
        self._watch = Stopwatch()

    @torch.no_grad()
    def run(self, progress: Callable[[int, int], None]) -> list[Path]:
        """Folders of all finished blocks, in order."""
        finished: list[Path] = []
        count = len(self.decoder.blocks)
        for index in range(count):
            layers = self.decoder.layer_names(index)
            inputs = {
                **self.inputs,
                "index": index,
                "steps": self.plan.describe(layers),
                "order": self.plan.order,
                # Later blocks see what earlier ones put out.
                "before": str(finished[-1].name) if finished else None,
            }
            found = self.store.get("block", inputs)
            if found is None:
                with self._watch.phase("calibration"):
                    self._advance_to(index, finished)
                found = self.store.put("block", inputs, self._writer(index))
            finished.append(found)
            progress(index + 1, count)
        return finished

    def _writer(self, index: int) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            path = f"{self.decoder.family.blocks}.{index}"
            self.decoder.load(path)
            weights, layers = self._compress(index)
            self.decoder.unload(path)
            save_block(folder, weights, layers)
            # Beside the result, not in it: two runs of one recipe differ in nothing else.
            write_json(folder / TIMING, self._watch.take())

        return write

    def _advance_to(self, index: int, finished: list[Path]) -> None:
        """Make the hidden states that enter block `index`."""
        if self.calibration is None or not self._compresses:
            return
        if self._ready_for < 0:
            self._embed()
        while self._ready_for < index:
            self._run_finished(self._ready_for, finished[self._ready_for])
            self._ready_for += 1

    @property
    def _compresses(self) -> bool:
        """Whether any layer has a step; a dense model needs no statistics."""
        return any(self.plan.steps.values())

    def _embed(self) -> None:
        assert self.calibration is not None
        self.decoder.load_outside_blocks()
        with recorded_calls(self.decoder.blocks) as calls:
            for ids in self.calibration:
                calls.clear()
                self.decoder.model(input_ids=ids[None].to(self.decoder.device), use_cache=False)
                self._hidden.append(calls[0][0])
        # All sequences are equally long, so masks and positions of the last stand for all.
        self._calls = [call for _, call in calls]
        self._ready_for = 0

    def _run_finished(self, index: int, folder: Path) -> None:
        path = f"{self.decoder.family.blocks}.{index}"
        self.decoder.load(path)
        for name, weight in load_block(folder).items():
            linear = self.decoder.model.get_submodule(name)
            set_weight(linear, weight.dequantize().to(self.decoder.device), self.decoder.dtype)
        self._hidden = [self._forward(index, hidden) for hidden in self._hidden]
        self.decoder.unload(path)

    def _forward(self, index: int, hidden: Tensor) -> Tensor:
        call = self._calls[index]
        output: Tensor = self.decoder.blocks[index](hidden, *call.args, **call.kwargs)
        return output

    def _compress(
        self, index: int
    ) -> tuple[dict[str, CompressedWeight], dict[str, dict[str, Any]]]:
        weights: dict[str, CompressedWeight] = {}
        report: dict[str, dict[str, Any]] = {}
        for names in self._rounds(index):
            modules = {name: self.decoder.model.get_submodule(name) for name in names}
            originals = {name: weight_of(module) for name, module in modules.items()}
            with self._watch.phase("statistics"):
                stats = self._statistics(index, modules)
            current: dict[str, CompressedWeight] = {
                name: Dense(W.to(self.decoder.dtype)) for name, W in originals.items()
            }
            told: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            with self._watch.phase("solve"):
                for depth in range(max(len(self.plan.steps[name]) for name in names)):
                    self._apply_step(depth, index, originals, current, stats, told)
            for name in names:
                found = layer_report(originals[name], current[name], stats[name])
                report[name] = found | {"diagnostics": told[name]}
                # What runs later in the block is calibrated on what runs now.
                kept = current[name].dequantize().to(self.decoder.device)
                set_weight(modules[name], kept, self.decoder.dtype)
            weights |= current
        return weights, report

    def _rounds(self, index: int) -> list[list[str]]:
        """Linears of a block that are calibrated and compressed together, in order."""
        if self.plan.order == "block":
            return [self.decoder.layer_names(index)]
        return self._groups(index)

    def _groups(self, index: int) -> list[list[str]]:
        """Linears of a block that share an input, in order of execution."""
        prefix = f"{self.decoder.family.blocks}.{index}."
        return [[prefix + name for name in group] for group in self.decoder.family.groups]

    def _apply_step(
        self,
        depth: int,
        index: int,
        originals: Mapping[str, Tensor],
        current: dict[str, CompressedWeight],
        stats: Mapping[str, LayerStats],
        told: Mapping[str, list[dict[str, Any]]],
    ) -> None:
        """Apply the step at `depth` of every layer's list, in place of `current`.

        told: what methods say of each layer is added to it
        """
        together: dict[int, list[str]] = {}
        before: LayerStats | None = None
        for name, W in originals.items():
            steps = self.plan.steps[name]
            if depth >= len(steps):
                continue
            step = steps[depth]
            # Linears with one input follow each other; what they shared is not needed after them.
            if before is not None and before is not stats[name]:
                before.forget()
            before = stats[name]
            if isinstance(step.method, BlockMethod):
                together.setdefault(id(step), []).append(name)
                continue
            try:
                made = step.method.compress(W, current[name], stats[name], step.config)
            except ConfigError as error:
                msg = f"{name}: {error}"
                raise type(error)(msg) from error
            if isinstance(made, Reported):
                told[name].append({"method": step.name, **made.details})
                made = made.weight
            current[name] = made
        if before is not None:
            before.forget()
        for names in together.values():
            step = self.plan.steps[names[0]][depth]
            assert isinstance(step.method, BlockMethod)
            task = self._block_task(index, names, originals, current, stats)
            try:
                current.update(step.method.compress_block(task, step.config))
            except ConfigError as error:
                msg = f"{self.decoder.family.blocks}.{index}: {error}"
                raise type(error)(msg) from error

    def _block_task(
        self,
        index: int,
        names: list[str],
        originals: Mapping[str, Tensor],
        current: Mapping[str, CompressedWeight],
        stats: Mapping[str, LayerStats],
    ) -> BlockTask:
        block = self.decoder.blocks[index]
        prefix = f"{self.decoder.family.blocks}.{index}."

        def forward(weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
            call = self._calls[index]
            state = {}
            for name, weight in weights.items():
                linear = self.decoder.model.get_submodule(name)
                state[f"{name.removeprefix(prefix)}.weight"] = oriented(linear, weight)
            output: Tensor = torch.func.functional_call(
                block, state, (inputs[None], *call.args), call.kwargs
            )
            return output[0]

        return BlockTask(
            {name: originals[name] for name in names},
            {name: current[name] for name in names},
            {name: stats[name] for name in names},
            tuple(hidden[0] for hidden in self._hidden),
            forward,
        )

    def _statistics(self, index: int, modules: Mapping[str, nn.Module]) -> dict[str, LayerStats]:
        if self.calibration is None or not self._compresses:
            return {name: LayerStats() for name in modules}
        groups = [group for group in self._groups(index) if group[0] in modules]
        with collected(modules, groups, self.plan.needs) as stats:
            for hidden in self._hidden:
                self._forward(index, hidden)
        return stats()


def layer_report(W: Tensor | None, weight: CompressedWeight, stats: LayerStats) -> dict[str, Any]:
    """What compression did to one layer: relative error, sparsity, bits, format.

    W: the original weight, or None where an imported checkpoint does not hold it
    """
    if W is None:
        error, norm = None, "unknown: the checkpoint holds no original weight"
    else:
        error, norm = relative_error(W, weight, stats.H)
    return {
        "relative_error": error,
        "norm": norm,
        "sparsity": sparsity_of(weight),
        "bits_per_weight": bits_per_weight(weight),
        "format": format_of(weight).to_json(),
    }


def relative_error(W: Tensor, weight: CompressedWeight, H: Tensor | None) -> tuple[float, str]:
    """|W' - W| / |W|, at the layer's output if H is known, and the name of the norm."""
    delta = weight.dequantize().to(W.device) - W
    if H is not None:
        error = float(((delta @ H) * delta).sum() / ((W @ H) * W).sum().clamp_min(1e-30))
        return max(error, 0.0) ** 0.5, "hessian"
    error = float(delta.square().sum() / W.square().sum().clamp_min(1e-30))
    return error**0.5, "frobenius"


def save_block(
    folder: Path, weights: Mapping[str, CompressedWeight], layers: Mapping[str, Any]
) -> None:
    """Write one block's packed weights and its report."""
    tensors = {
        f"{name}.{part}": tensor.cpu().contiguous()
        for name, weight in weights.items()
        for part, tensor in pack(weight).items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / LAYERS, dict(layers))


def load_block(folder: Path) -> dict[str, CompressedWeight]:
    """Read one block's weights."""
    tensors = load_file(folder / WEIGHTS)
    weights = {}
    for name, report in read_json(folder / LAYERS).items():
        parts = {
            key.removeprefix(f"{name}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{name}.")
        }
        weights[name] = unpack(WeightFormat.from_json(report["format"]), parts)
    return weights


@contextlib.contextmanager
def recorded_calls(blocks: nn.ModuleList) -> Iterator[list[tuple[Tensor, BlockCall]]]:
    """Make every block note how it is called and return its input; undone on exit.

    Blocks need no weights meanwhile.  Masks and rotary embeddings do not depend on the hidden
    states, so one such pass tells how to call each block alone, also where kinds of attention
    alternate.
    """
    calls: list[tuple[Tensor, BlockCall]] = []

    def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append((hidden, BlockCall(args, kwargs)))
        return hidden

    for block in blocks:
        block.forward = record  # shadows the class's method, deleted below
    try:
        yield calls
    finally:
        for block in blocks:
            del block.forward
