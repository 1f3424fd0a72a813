"""Layers at several levels each, compressed in the model before compression: what a search tries.

A block is a stage of the store, so a killed run goes on at the next one, and searches that differ
only in how they search share all of them.  What is stored is what runs: decoded weights.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from trinity.harness.compress import contracts
from trinity.harness.compress.entering import Entering
from trinity.harness.compress.plan import PlannedStep
from trinity.harness.models.decoder import Decoder, cast, weight_of
from trinity.harness.store.stages import StageStore
from trinity.methods.contract import OF_LOSS, LayerStats, Method, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense

Tried = Mapping[str, Mapping[int, tuple[PlannedStep, ...]]]
"""The steps that make each level of each layer."""
FILE = "versions.safetensors"
# Of the whole model, or of another one: what a block that is tried alone has not.
REFUSED = OF_LOSS | Statistic.DRIFT


def load_version(folder: Path, layer: str, level: int) -> Tensor:
    """A layer at a level, decoded.  -> [out, in]"""
    with safe_open(folder / FILE, framework="pt") as file:
        found: Tensor = file.get_tensor(_key(layer, level))
        return found


def _key(layer: str, level: int) -> str:
    return f"{layer} {level}"


class Versions:
    """Makes them, block by block."""

    def __init__(
        self, decoder: Decoder, calibration: Tensor, store: StageStore, inputs: Mapping[str, Any]
    ) -> None:
        """calibration: int64 [samples, seqlen]   inputs: what all stages depend on"""
        self.decoder, self.calibration, self.store = decoder, calibration, store
        self.inputs = inputs
        self._entering: Entering | None = None

    def run(self, tried: Tried, say: Callable[[int, int], None]) -> dict[str, Path]:
        """The stage of each layer."""
        _check(tried)
        found: dict[str, Path] = {}
        for index in range(len(self.decoder.blocks)):
            own = {n: tried[n] for n in self.decoder.layer_names(index) if n in tried}
            if own:
                steps = {
                    name: {str(level): [s.describe() for s in of] for level, of in levels.items()}
                    for name, levels in own.items()
                }
                inputs = {**self.inputs, "index": index, "steps": steps}
                write = partial(self._write, index=index, tried=own)
                found |= dict.fromkeys(own, self.store.fill("versions", inputs, write))
            say(index + 1, len(self.decoder.blocks))
        return found

    @torch.no_grad()
    def _write(self, folder: Path, index: int, tried: Tried) -> None:
        if self._entering is None:
            self._entering = Entering(self.decoder, self.calibration, self.store.root)
        while self._entering.index < index:
            self._entering.advance({})
        path = f"{self.decoder.family.blocks}.{index}"
        self.decoder.load(path)
        needs = Statistic.NOTHING
        for step in _steps(tried):
            needs |= step.needs
        stats = self._entering.statistics(list(tried), needs)
        made = {
            _key(name, level): self._made(name, steps, stats[name])
            for name, levels in tried.items()
            for level, steps in levels.items()
        }
        self.decoder.unload(path)
        save_file(made, folder / FILE)

    def _made(self, name: str, steps: tuple[PlannedStep, ...], stats: LayerStats) -> Tensor:
        """What a layer's steps make of it, in the model's type.  -> [out, in]"""
        original = weight_of(self.decoder.model.get_submodule(name))
        shape = (original.shape[0], original.shape[1])
        current: CompressedWeight = Dense(original.to(self.decoder.dtype))
        for step in steps:
            assert isinstance(step.method, Method)
            asked = stats.only(step.needs)
            run = partial(step.method.compress, original, current, asked, step.config)
            given = {"W": original, "current": current, "stats": asked}
            made = contracts.call(step.name, name, run, given)
            current = contracts.weight(step.name, name, made, shape).weight
        where = f"{name}: the compressed weight"
        return cast(where, current.dequantize(), self.decoder.dtype).cpu().contiguous()


def _steps(tried: Tried) -> list[PlannedStep]:
    return [step for levels in tried.values() for steps in levels.values() for step in steps]


def _check(tried: Tried) -> None:
    """ConfigError if some steps are not of a layer alone."""
    for step in _steps(tried):
        if not isinstance(step.method, Method):
            msg = (
                f"{step.name}: it changes several layers together, and a search tries them one by "
                f"one. Leave it out before the step that is searched for."
            )
            raise ConfigError(msg)
        asked = [str(need.name).lower() for need in REFUSED & step.needs]
        if asked:
            msg = (
                f"{step.name}: it needs {', '.join(asked)}, which is not there while layers are "
                f"tried. Search for the options of another step."
            )
            raise ConfigError(msg)
