"""The model walk: block by block, statistics from the blocks already compressed.

One walker serves every method and every family.  Only one block's weights and the activations
between two blocks are in memory.  A finished block is a stage of the store, so a killed run resumes
at the next one: the activations that it needs are made again by running the finished blocks, which
is cheaper than keeping them on disk, and gives the same bits because both ways decode the stored
block.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trinity.harness.checkpoints.block import (
    TIMING,
    layer_report,
    load_block,
    load_scales,
    save_block,
    save_scales,
)
from trinity.harness.compress import contracts, transforming
from trinity.harness.compress.activations import EnoughError, collected, ended_early
from trinity.harness.compress.dense_stream import DenseStream
from trinity.harness.compress.entering import Entering
from trinity.harness.compress.gradients import by_sequence, load_gradients
from trinity.harness.compress.plan import Plan, PlannedStep
from trinity.harness.compress.transforming import Transformed
from trinity.harness.latency.stopwatch import Stopwatch
from trinity.harness.models.decoder import Decoder, cast, set_weight, weight_of
from trinity.harness.records import available
from trinity.harness.store.stages import StageStore, write_json
from trinity.methods.contract import (
    BlockMethod,
    BlockTask,
    LayerStats,
    Method,
    Reported,
    Statistic,
)
from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    CompressedWeight,
    Dense,
)

logger = logging.getLogger(__name__)


class Walk:
    """Compresses the blocks of one model in order."""

    def __init__(
        self,
        decoder: Decoder,
        plan: Plan,
        calibration: Tensor | None,
        store: StageStore,
        inputs: Mapping[str, Any],
        gradients: Path | None = None,
    ) -> None:
        """calibration: int64 [samples, seqlen], or None.  inputs: what all stages depend on.

        gradients: the stage that has them, where a method asks for them
        """
        self.decoder, self.plan, self.calibration = decoder, plan, calibration
        self.store, self.inputs = store, inputs
        self._entering: Entering | None = None
        self._dense: DenseStream | None = None  # only where a method asks for it
        self._gradients = gradients
        self._by_sequence: dict[str, Tensor] = {}  # of the block, where a method asks for them
        self._watch = Stopwatch()

    @torch.no_grad()
    @available.large_mapped()
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
            if self._gradients is not None:
                inputs["gradients"] = self._gradients.name
            finished.append(self.store.fill("block", inputs, self._writer(index, finished)))
            self.decoder.fold(index, load_scales(finished[-1], self.decoder.folds(index)))
            progress(index + 1, count)
        return finished

    def _writer(self, index: int, finished: list[Path]) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            with self._watch.phase("calibration"):
                self._advance_to(index, finished)
            available.give_back()
            path = f"{self.decoder.family.blocks}.{index}"
            self.decoder.load(path)
            done = self._transform(index)
            if Statistic.GRADIENTS in self.plan.needs:
                with self._watch.phase("statistics"):
                    self._by_sequence = self._of_sequences()
            weights, layers = self._compress(index, done)
            for name, found in layers.items():
                found["diagnostics"] = [*self.plan.told.get(name, ()), *found["diagnostics"]]
            if self._dense is not None:
                self._dense.forget()
            self._by_sequence = {}
            self.decoder.unload(path)
            save_block(folder, weights, layers)
            save_scales(folder, [found.scales for found in done])
            del weights
            available.give_back()
            # Beside the result, not in it: two runs of one recipe differ in nothing else.
            write_json(folder / TIMING, self._watch.take())

        return write

    def _advance_to(self, index: int, finished: list[Path]) -> None:
        """Make the hidden states that enter block `index`."""
        if self.calibration is None or not self._compresses:
            return
        if self._entering is None:
            self._entering = Entering(self.decoder, self.calibration, self.store.root)
            if Statistic.DRIFT in self.plan.needs:
                self._dense = DenseStream(self.decoder, self.calibration, self.store.root)
        if self._dense is not None:
            self._dense.advance_to(index)
        while self._entering.index < index:
            self._entering.advance(load_block(finished[self._entering.index]))

    @property
    def _compresses(self) -> bool:
        """Whether any layer has a step; a dense model needs no statistics."""
        return any(self.plan.steps.values())

    def _transform(self, index: int) -> list[Transformed]:
        """Do what changes the layers of the loaded block together, and load it so."""
        names = self.decoder.layer_names(index)
        steps = transforming.steps_of(self.plan, names)
        if not steps:
            return []
        if self._entering is None:
            msg = (
                f"{steps[0][0].name}: the recipe has no calibration data, and that the block gives "
                f"what it gave cannot be proven without."
            )
            raise ConfigError(msg)
        transform = transforming.Transforming(self.decoder, self._entering, index)
        modules = {name: self.decoder.model.get_submodule(name) for name in names}
        with self._watch.phase("statistics"):
            stats = self._statistics(index, modules, {})
        with self._watch.phase("transform"):
            done: list[Transformed] = []
            for step, of in steps:
                done.append(transform.apply(step, of, stats))
                if len(done) < len(steps):
                    stats = self._statistics(index, modules, transforming.moved(done))
        return done

    def _compress(
        self, index: int, done: list[Transformed]
    ) -> tuple[dict[str, CompressedWeight], dict[str, dict[str, Any]]]:
        weights: dict[str, CompressedWeight] = {}
        report: dict[str, dict[str, Any]] = {}
        moved = transforming.moved(done)
        for names in self._rounds(index):
            modules = {name: self.decoder.model.get_submodule(name) for name in names}
            with self._watch.phase("statistics"):
                stats = self._statistics(index, modules, moved)
            for part in self._parts(index, names):
                available.give_back()
                own = {name: stats.pop(name) for name in part}
                own = self._with_gradients(index, own)
                weights |= self._compress_part(index, part, own, report)
        for name, found in report.items():
            before = [step.told[name] for step in done if name in step.told]
            found["diagnostics"] = [*before, *found["diagnostics"]]
        return weights, report

    def _compress_part(
        self,
        index: int,
        names: list[str],
        stats: Mapping[str, LayerStats],
        report: dict[str, dict[str, Any]],
    ) -> dict[str, CompressedWeight]:
        """Apply all steps of some linears, and put the result in the model.

        report: what compression did to each is added to it
        """
        modules = {name: self.decoder.model.get_submodule(name) for name in names}
        originals = {name: weight_of(module) for name, module in modules.items()}
        current: dict[str, CompressedWeight] = {
            name: Dense(W.to(self.decoder.dtype)) for name, W in originals.items()
        }
        told: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        with self._watch.phase("solve"):
            for depth in range(max(len(self.plan.steps[name]) for name in names)):
                self._apply_step(depth, index, originals, current, stats, told)
        for name in names:
            found = layer_report(originals.pop(name), current[name], stats[name])
            report[name] = found | {"diagnostics": told[name]}
            # What runs later in the block is calibrated on what runs now.
            kept = current[name].dequantize().to(self.decoder.device)
            where = f"{name}: the compressed weight"
            kept = cast(where, kept, self.decoder.dtype, "Calibrate or quantize otherwise.")
            if self._dense is not None:
                self._dense.keep(modules[name])
            set_weight(modules[name], kept, self.decoder.dtype)
        return current

    def _of_sequences(self) -> dict[str, Tensor]:
        """Gradients of each sequence by the linears of the loaded block.  -> [samples, out, in]"""
        assert self._gradients is not None
        assert self._entering is not None
        count = len(self._entering.states)
        return by_sequence(self._gradients, self._entering, count, self.store.root)

    def _with_gradients(self, index: int, stats: Mapping[str, LayerStats]) -> dict[str, LayerStats]:
        """Statistics with each layer's own gradients, where a method asks for them."""
        if self._gradients is None:
            return dict(stats)
        device = self.decoder.device
        of_loss = Statistic.FISHER in self.plan.needs
        squares = load_gradients(self._gradients, index, device) if of_loss else {}
        kept = {name: of.to(device) for name, of in self._by_sequence.items() if name in stats}
        return {n: of.with_own(squares.get(n), kept.get(n)) for n, of in stats.items()}

    def _parts(self, index: int, names: list[str]) -> list[list[str]]:
        """Linears of a round whose weights are in memory together: those that a method of blocks
        sees at once, or else those that share an input.
        """
        if any(isinstance(step.method, BlockMethod) for n in names for step in self.plan.steps[n]):
            return [names]
        return [group for group in self._groups(index) if group[0] in names]

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
        # Of linears with one input, a method sees one and the same object.
        views: dict[tuple[int, str], LayerStats] = {}
        before: LayerStats | None = None
        for name, W in originals.items():
            steps = self.plan.steps[name]
            if depth >= len(steps):
                continue
            step = steps[depth]
            if not isinstance(step.method, (Method, BlockMethod)):
                continue  # done before, to the whole block or the whole model
            # Linears with one input follow each other; what they shared is not needed after them.
            if before is not None and not before.shares_with(stats[name]):
                before.forget()
            before = stats[name]
            if isinstance(step.method, BlockMethod):
                together.setdefault(id(step), []).append(name)
                continue
            view = stats[name].only(step.needs)
            asked = views.setdefault((id(stats[name]), step.name), view)
            given = {"W": W, "current": current[name], "stats": asked}
            run = partial(step.method.compress, W, current[name], asked, step.config)
            made = contracts.call(step.name, name, run, given)
            shape = (W.shape[0], W.shape[1])
            _keep(step.name, {name: contracts.weight(step.name, name, made, shape)}, current, told)
        if before is not None:
            before.forget()
        for names in together.values():
            task = partial(self._block_task, names, originals, current, stats)
            step = self.plan.steps[names[0]][depth]
            _keep(step.name, self._apply_to_block(index, step, task), current, told)

    def _apply_to_block(
        self, index: int, step: PlannedStep, task_with: Callable[[Statistic], BlockTask]
    ) -> Mapping[str, Reported]:
        """The linears that a method of blocks compresses together.

        task_with: them, with the statistics that the method asks for
        """
        assert isinstance(step.method, BlockMethod)
        task = task_with(step.needs)
        where = f"{self.decoder.family.blocks}.{index}"
        run_block = partial(step.method.compress_block, task, step.config)
        parts = {
            "weights": task.weights,
            "current": task.current,
            "stats": task.stats,
            "inputs": task.inputs,
        }
        result = contracts.call(step.name, where, run_block, parts)
        shapes = {name: weight.shape for name, weight in task.current.items()}
        return contracts.weights(step.name, where, result, shapes)

    def _block_task(
        self,
        names: list[str],
        originals: Mapping[str, Tensor],
        current: Mapping[str, CompressedWeight],
        stats: Mapping[str, LayerStats],
        needs: Statistic,
    ) -> BlockTask:
        def forward(weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
            if self._entering is None:
                msg = "the block cannot be run: the recipe has no calibration data."
                raise ConfigError(msg)
            return self._entering.forward(weights, inputs)

        return BlockTask(
            {name: originals[name] for name in names},
            {name: current[name] for name in names},
            {name: stats[name].only(needs) for name in names},
            tuple(hidden[0] for hidden in self._entering.states) if self._entering else (),
            forward,
        )

    def _statistics(
        self, index: int, modules: Mapping[str, nn.Module], moved: Mapping[str, Tensor]
    ) -> dict[str, LayerStats]:
        if self._entering is None:
            return {name: LayerStats() for name in modules}
        groups = [group for group in self._groups(index) if group[0] in modules]
        read = [modules[group[0]] for group in groups]
        collecting = collected(modules, groups, self.plan.needs, moved)
        with collecting as stats, ended_early(read):
            for number, hidden in enumerate(self._entering.states):
                if self._dense is not None:
                    before = self._dense.entering
                    with self._dense.as_before(), stats.dense(), contextlib.suppress(EnoughError):
                        before.run(before.states[number])
                with contextlib.suppress(EnoughError):
                    self._entering.run(hidden)
        return stats()


def _keep(
    method: str,
    made: Mapping[str, Reported],
    current: dict[str, CompressedWeight],
    told: Mapping[str, list[dict[str, Any]]],
) -> None:
    """Put what a method made in place of `current`, and what it said of it under `told`."""
    for name, found in made.items():
        current[name] = found.weight
        if found.details:
            told[name].append({"method": method, **found.details})
