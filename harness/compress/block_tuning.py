"""Tuning a compressed model block by block, each towards the block that it was before.

Offline, a block's inputs come from the model before compression, and no tuned block depends on
another.  Online, they are what the tuned blocks before it put out.  A tuned block is a stage of the
store, so a killed run resumes at the next one; and processes that run the same recipe in one store
share the blocks of an offline tuning: each takes the next one that no other has in hand.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trinity.harness.checkpoints.block import TIMING, load_block
from trinity.harness.compress import contracts
from trinity.harness.compress.entering import Entering
from trinity.harness.compress.plan import PlannedTune
from trinity.harness.compress.tune import save_tuned
from trinity.harness.latency.stopwatch import Stopwatch
from trinity.harness.models.decoder import Decoder, weight_of
from trinity.harness.store.stages import StageStore, read_json, write_json
from trinity.methods.contract import BlockMethod, BlockTask, LayerStats, Reported
from trinity.methods.formats import CompressedWeight


class BlockTuning:
    """Tunes the blocks of one model in order."""

    def __init__(
        self,
        decoder: Decoder,
        step: PlannedTune,
        sequences: Tensor,
        store: StageStore,
        inputs: Mapping[str, Any],
    ) -> None:
        """sequences: int64 [samples, seqlen]   inputs: what all stages depend on"""
        self.decoder, self.step, self.sequences = decoder, step, sequences
        self.store, self.inputs = store, inputs
        self._entering: Entering | None = None
        self._watch = Stopwatch()

    @torch.no_grad()
    def run(self, blocks: list[Path], progress: Callable[[int, int], None]) -> list[Path]:
        """Folders of the tuned blocks, in order.  blocks: finished stages, in order"""
        if self.step.mode == "online":
            return self._in_order(blocks, progress)
        # Those that another process has in hand come last: by then they may be finished.
        found: dict[int, Path] = {}
        for wait in (False, True):
            for index, block in enumerate(blocks):
                if index in found:
                    continue
                inputs = self._inputs(index, block, None)
                write = partial(self._write, index=index, block=block, finished=())
                with self.store.claim("tuned-block", inputs) as ours:
                    if ours or wait:
                        found[index] = self.store.fill("tuned-block", inputs, write)
                        progress(len(found), len(blocks))
        return [found[index] for index in range(len(blocks))]

    def _in_order(self, blocks: list[Path], progress: Callable[[int, int], None]) -> list[Path]:
        finished: list[Path] = []
        for index, block in enumerate(blocks):
            inputs = self._inputs(index, block, finished[-1].name if finished else None)
            write = partial(self._write, index=index, block=block, finished=tuple(finished))
            finished.append(self.store.fill("tuned-block", inputs, write))
            progress(index + 1, len(blocks))
        return finished

    def _inputs(self, index: int, block: Path, before: str | None) -> dict[str, Any]:
        return {**self.inputs, "index": index, "block": block.name, "before": before}

    def _write(self, folder: Path, index: int, block: Path, finished: tuple[Path, ...]) -> None:
        with self._watch.phase("inputs"):
            entering = self._entered(index, finished)
        path = f"{self.decoder.family.blocks}.{index}"
        self.decoder.load(path)
        names = self.decoder.layer_names(index)
        originals = {name: weight_of(self.decoder.model.get_submodule(name)) for name in names}
        current = load_block(block, str(self.decoder.device))
        with self._watch.phase("tune"):
            tuned = self._tuned(path, originals, current, entering)
        save_tuned(folder, self.step, tuned, originals, block)
        self.decoder.unload(path)
        # Beside the result, not in it; what compressing the block took stays.
        write_json(folder / TIMING, {**read_json(block / TIMING), **self._watch.take()})

    def _entered(self, index: int, finished: tuple[Path, ...]) -> Entering:
        """What enters block `index`."""
        # It goes forward only: a block that another process gave up is reached from the start.
        if self._entering is None or self._entering.index > index:
            self._entering = Entering(self.decoder, self.sequences, self.store.root)
        while self._entering.index < index:
            online = self.step.mode == "online"
            self._entering.advance(load_block(finished[self._entering.index]) if online else {})
        return self._entering

    def _tuned(
        self,
        where: str,
        originals: Mapping[str, Tensor],
        current: Mapping[str, CompressedWeight],
        entering: Entering,
    ) -> dict[str, Reported]:
        """The tuned weights by layer, held to the method's contract."""
        method = self.step.method
        assert isinstance(method, BlockMethod)
        stats = {name: LayerStats() for name in current}
        inputs = tuple(hidden[0] for hidden in entering.states)
        task = BlockTask(originals, current, stats, inputs, entering.forward)
        run = partial(method.compress_block, task, self.step.config)
        given = {"weights": originals, "current": current, "inputs": inputs}
        result = contracts.call(method.name, where, run, given)
        shapes = {name: weight.shape for name, weight in current.items()}
        tuned = contracts.weights(method.name, where, result, shapes)
        contracts.same_formats(method.name, current, tuned)
        return tuned
