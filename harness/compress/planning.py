"""A pass over the model before compression, for steps that give each layer its options.

It is a stage of the store: recipes that plan with the same options on the same text share it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trinity.harness.compress import contracts
from trinity.harness.compress.entering import Entering
from trinity.harness.compress.plan import Plan, PlannedStep
from trinity.harness.compress.searching import Say, Searching
from trinity.harness.models.decoder import Decoder, weight_of
from trinity.harness.store.stages import StageStore, read_json, write_json
from trinity.methods.errors import ConfigError
from trinity.methods.planning import Measured, PlanMethod
from trinity.methods.searching import SearchMethod

FILE = "plan.json"


class Planning:
    """Runs the planning steps of a plan.  Folders of stages hold what they measured and gave."""

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

    def run(self, plan: Plan, say: Say) -> Plan:
        """The plan with the options that its planning and searching steps give.

        say: told what is done, how much of it is, and of how much
        """
        for step in plan.planners:
            layers = [name for name, steps in plan.steps.items() if step in steps]
            followers = {name: plan.after(step, name) for name in layers}
            given = [found.describe() for found in followers.values()]
            if any(options != given[0] for options in given):
                msg = f"{step.name}: the step after it has other options in some layers."
                raise ConfigError(msg)
            options = {key: value for key, value in given[0].items() if key != "method"}
            if isinstance(step.method, SearchMethod):
                searching = Searching(self.decoder, self.calibration, self.store, self.inputs)
                found, measured = searching.run(plan, step, layers, options, say)
                plan = plan.with_options(step, found, measured)
                continue
            inputs = {**self.inputs, "step": step.describe(), "layers": layers, "given": given[0]}
            write = partial(self._write, step=step, layers=layers, given=options, say=say)
            folder = self.store.fill("plan", inputs, write)
            said = read_json(folder / FILE)
            plan = plan.with_options(step, said["options"], said["measured"])
        return plan

    @torch.no_grad()
    def _write(
        self,
        folder: Path,
        step: PlannedStep,
        layers: list[str],
        given: Mapping[str, Any],
        say: Say,
    ) -> None:
        method = step.method
        assert isinstance(method, PlanMethod)
        if self.calibration is None and step.needs:
            msg = f"{step.name}: needs calibration data, and the recipe has no `calibration:`."
            raise ConfigError(msg)
        blocks = self._measured(step, layers, partial(say, "plan, blocks"))
        run = partial(method.allot, blocks, given, step.config)
        result = contracts.call(step.name, "compress.steps", run, {})
        allotted = contracts.allotted(step.name, result, layers)
        numbers = {name: dict(of.numbers) for block in blocks for name, of in block.items()}
        write_json(folder / FILE, {"measured": numbers, "options": allotted})

    def _measured(
        self, step: PlannedStep, layers: list[str], say: Callable[[int, int], None]
    ) -> list[dict[str, Measured]]:
        """Numbers of some layers, block by block; blocks without any are left out."""
        decoder, found = self.decoder, []
        entering = (
            None
            if self.calibration is None
            else Entering(decoder, self.calibration, self.store.root)
        )
        for index in range(len(decoder.blocks)):
            names = [name for name in decoder.layer_names(index) if name in set(layers)]
            path = f"{decoder.family.blocks}.{index}"
            if names:
                decoder.load(path)
                found.append(self._block(step, index, names, entering))
                decoder.unload(path)
            if entering is not None and index + 1 < len(decoder.blocks):
                entering.advance({})
            say(index + 1, len(decoder.blocks))
        return found

    def _block(
        self, step: PlannedStep, index: int, names: list[str], entering: Entering | None
    ) -> dict[str, Measured]:
        method = step.method
        assert isinstance(method, PlanMethod)
        linears = {name: self.decoder.model.get_submodule(name) for name in names}
        stats = entering.statistics(names, step.needs) if entering is not None else {}
        given = {name: of.only(step.needs) for name, of in stats.items()}
        weights = {name: weight_of(linear) for name, linear in linears.items()}
        run = partial(method.measure, weights, given, step.config)
        where = f"{self.decoder.family.blocks}.{index}"
        made = contracts.call(step.name, where, run, {"weights": weights, "stats": given})
        numbers = contracts.measured(step.name, where, made, names)
        return {
            name: Measured((W.shape[0], W.shape[1]), numbers[name]) for name, W in weights.items()
        }
