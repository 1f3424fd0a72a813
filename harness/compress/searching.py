"""A search for options by layer, over models that are put together from stored layers.

Every round is a stage of the store, keyed by the one before it: a killed search goes on where it
was.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from trinity.harness.compress import contracts
from trinity.harness.compress.candidates import Candidates, candidates
from trinity.harness.compress.plan import Plan, PlannedStep
from trinity.harness.compress.versions import Tried, Versions
from trinity.harness.models.decoder import Decoder
from trinity.harness.store.stages import StageStore, read_json, write_json
from trinity.methods.contract import MethodConfig
from trinity.methods.errors import ConfigError
from trinity.methods.searching import Choice, Levels, Searched, SearchMethod, SearchTask

FILE = "choice.json"
Say = Callable[[str, int, int], None]


class Searching:
    """Runs the searching steps of a plan."""

    def __init__(
        self,
        decoder: Decoder,
        calibration: Tensor | None,
        store: StageStore,
        inputs: Mapping[str, Any],
    ) -> None:
        """calibration: int64 [samples, seqlen]   inputs: what all stages depend on"""
        self.decoder, self.calibration, self.store = decoder, calibration, store
        self.inputs = inputs

    def run(
        self,
        plan: Plan,
        step: PlannedStep,
        layers: Sequence[str],
        options: Mapping[str, Any],
        say: Say,
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
        """Options for the step after, and what was measured, by layer.

        layers: that have the step   options: of the step after it
        """
        method, text = step.method, self.calibration
        assert isinstance(method, SearchMethod)
        if text is None:
            msg = f"{step.name}: models are tried on a text, and the recipe has no `calibration:`."
            raise ConfigError(msg)
        shapes = {name: self.decoder.layer_shapes()[name] for name in layers}
        model = Searched(shapes, options, len(text), text.shape[1])
        asked = partial(method.levels, model, step.config)
        result = contracts.call(step.name, "compress.steps", asked, {})
        levels = contracts.levels(step.name, result, layers)
        tried = _tried(plan, step, levels)
        making = Versions(self.decoder, text, self.store, self.inputs)
        versions = making.run(tried, partial(say, "versions, blocks"))
        inputs = {
            **self.inputs,
            "step": step.describe(),
            "versions": {name: folder.name for name, folder in versions.items()},
        }
        with candidates(self.decoder, text, versions, self.store.root) as found:
            task = SearchTask(model, levels, found.divergence, found.loss)
            best = self._searched(step, task, inputs, partial(say, "search, rounds"))
            told = self._told(found, task, best, inputs)
        return {n: dict(levels[n][at]) for n, at in best.items()}, told

    def _searched(
        self,
        step: PlannedStep,
        task: SearchTask,
        inputs: Mapping[str, Any],
        say: Callable[[int, int], None],
    ) -> Choice:
        """The choice after all rounds."""
        method, config = step.method, step.config
        assert isinstance(method, SearchMethod)
        best: Choice = dict.fromkeys(task.model.shapes, 0)
        before, rounds = None, method.rounds(config)
        for at in range(rounds):
            write = partial(_improve, method=method, best=best, at=at, task=task, config=config)
            folder = self.store.fill("search", {**inputs, "at": at, "before": before}, write)
            best, before = read_json(folder / FILE), folder.name
            say(at + 1, rounds)
        return best

    def _told(
        self, found: Candidates, task: SearchTask, best: Choice, inputs: Mapping[str, Any]
    ) -> dict[str, dict[str, float]]:
        """Of every layer its level, and what the model gained on the whole text."""
        every = range(task.model.samples)
        given = dict.fromkeys(best, 0)

        def write(folder: Path) -> None:
            measured = {
                "divergence": found.divergence(best, every),
                "divergence_as_given": found.divergence(given, every),
            }
            write_json(folder / FILE, measured)

        folder = self.store.fill("searched", {**inputs, "choice": dict(best)}, write)
        return {name: {"level": at, **read_json(folder / FILE)} for name, at in best.items()}


def _improve(
    folder: Path,
    *,
    method: SearchMethod[MethodConfig],
    best: Choice,
    at: int,
    task: SearchTask,
    config: MethodConfig,
) -> None:
    """Write the choice after one round."""
    run = partial(method.improve, best, at, task, config)
    result = contracts.call(method.name, f"round {at + 1}", run, {})
    write_json(folder / FILE, contracts.choice(method.name, result, task.levels))


def _tried(plan: Plan, step: PlannedStep, levels: Levels) -> Tried:
    """The steps of every level of every layer: those of its own up to the one that is planned."""
    return {
        name: {level: plan.tried(step, name, options) for level, options in of.items()}
        for name, of in levels.items()
    }
