"""Changing the layers of a block together, and the proof that the block gives what it gave."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trinity.harness.compress import contracts
from trinity.harness.compress.entering import Entering
from trinity.harness.compress.plan import Plan, PlannedStep
from trinity.harness.models import folding
from trinity.harness.models.decoder import Decoder, weight_of
from trinity.methods.contract import LayerStats
from trinity.methods.errors import UnsupportedError
from trinity.methods.transforms import Fold, Scaled, TransformMethod, TransformTask

# Of what the block adds to its input: an identity that does not hold is off by a tenth and more.
# In 16 bits, weights that are multiplied are rounded again, each by half a unit.
ALLOWED_OF_FLOAT32, ALLOWED_UNITS = 1e-4, 16


@dataclass(frozen=True, eq=False)
class Transformed:
    """What one step did to a block.

    scales: [in] of each fold   told: for the report of each linear that was scaled
    """

    scales: Mapping[Fold, Tensor]
    told: Mapping[str, dict[str, Any]]


def steps_of(plan: Plan, names: Sequence[str]) -> list[tuple[PlannedStep, list[str]]]:
    """The steps that transform some linears, in order, each with the linears that have it."""
    found: dict[tuple[int, str], tuple[PlannedStep, list[str]]] = {}
    for name in names:
        for depth, step in enumerate(plan.steps[name]):
            if step.transforms:
                key = (depth, str(step.describe()))
                found.setdefault(key, (step, []))[1].append(name)
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def moved(done: Sequence[Transformed]) -> dict[str, Tensor]:
    """What all steps together divided the inputs of linears by.  -> [in] by name"""
    found: dict[str, Tensor] = {}
    for transformed in done:
        for fold, scale in transformed.scales.items():
            for name in fold.linears:
                found[name] = scale * found[name] if name in found else scale
    return found


class Transforming:
    """The loaded block of a walk."""

    def __init__(self, decoder: Decoder, entering: Entering, index: int) -> None:
        """entering: what enters block `index`"""
        self.decoder, self.entering, self.index = decoder, entering, index
        self.path = f"{decoder.family.blocks}.{index}"
        self._scales: list[Mapping[Fold, Tensor]] = []

    def apply(
        self, step: PlannedStep, names: Sequence[str], stats: Mapping[str, LayerStats]
    ) -> Transformed:
        """Ask a step for scales, prove each of them, and load the block with them in it.

        names: linears that have the step
        """
        linears = {n: self.decoder.model.get_submodule(n) for n in self._all_names()}
        weights = {name: weight_of(linear) for name, linear in linears.items()}
        folds = tuple(f for f in self.decoder.folds(self.index) if set(f.linears) <= set(names))
        task = TransformTask(
            weights,
            {name: stats[name].only(step.needs) for name in weights},
            folds,
            tuple(hidden[0] for hidden in self.entering.states),
            self.entering.forward,
        )
        made = self._asked(step, task)
        for fold, scaled in made.items():
            self._prove(step, fold, scaled.scale)
        scales = {fold: scaled.scale for fold, scaled in made.items()}
        self._scales.append(scales)
        self.decoder.fold(self.index, self._scales)
        self.decoder.load(self.path)
        return Transformed(scales, _told(step, made))

    def _all_names(self) -> list[str]:
        return self.decoder.layer_names(self.index)

    def _asked(self, step: PlannedStep, task: TransformTask) -> dict[Fold, Scaled]:
        method = step.method
        assert isinstance(method, TransformMethod)
        given = {"weights": task.weights, "stats": task.stats, "inputs": task.inputs}
        run = partial(method.transform, task, step.config)
        result = contracts.call(step.name, self.path, run, given)
        widths = {fold: task.weights[fold.linears[0]].shape[1] for fold in task.folds}
        return contracts.scales(step.name, self.path, result, widths)

    def _prove(self, step: PlannedStep, fold: Fold, scale: Tensor) -> None:
        """UnsupportedError if the block gives something else with this scale in it.

        On the first calibration sequence, in the type that the model is computed in.
        """
        model = self.decoder.model
        changed = dict(folding.factors(model, self.decoder.family, {fold: scale}))
        tensors = {name: of(model.get_parameter(name)) for name, of in changed.items()}
        inputs = self.entering.states[0][0]
        before = self.entering.with_tensors({}, inputs).float()
        after = self.entering.with_tensors(tensors, inputs).float()
        added = (before - inputs.float()).norm().clamp_min(1e-30)
        off = float((after - before).norm() / added)
        if off <= allowed(self.decoder.dtype):
            return
        msg = (
            f"{fold.into}: {step.name} moved a scale of the inputs of {', '.join(fold.linears)} "
            f"here, and the block's outputs changed by {off:.2g} of what it adds to its inputs "
            f"({allowed(self.decoder.dtype):.2g} is rounding). In this model the two are not "
            f"inverse: leave these layers out of the step (`compress.layers`)."
        )
        raise UnsupportedError(msg)


def allowed(dtype: torch.dtype) -> float:
    """How far outputs may move in a type, as a share of what a block adds to its inputs."""
    if dtype == torch.float32:
        return ALLOWED_OF_FLOAT32
    return ALLOWED_UNITS * torch.finfo(dtype).eps


def _told(step: PlannedStep, made: Mapping[Fold, Scaled]) -> dict[str, dict[str, Any]]:
    return {
        name: {"method": step.name, "scale_moved_to": fold.into, **scaled.details}
        for fold, scaled in made.items()
        for name in fold.linears
    }
