"""Turning the residual stream of a model, and the proof that it gives what it gave."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trinity.harness.compress import contracts
from trinity.harness.compress.block_calls import logits_after
from trinity.harness.compress.entering import Entering
from trinity.harness.compress.plan import Plan, PlannedRotation
from trinity.harness.compress.transforming import allowed
from trinity.harness.models.decoder import Decoder
from trinity.harness.models.rotating import Rotation
from trinity.harness.store.stages import StageStore, write_json
from trinity.methods.errors import ConfigError, UnsupportedError
from trinity.methods.formats import InputFormat, hadamard

FILE = "rotation.json"
# Of the stream itself, which is large beside what some blocks add to it.
ROUNDING = 16 * torch.finfo(torch.float32).eps


def check(step: PlannedRotation | None, decoder: Decoder) -> None:
    """UnsupportedError or ConfigError if this model's stream cannot be turned so."""
    if step is None:
        return
    if decoder.family.stream is None:
        msg = (
            f"{step.name}: the residual stream of a {decoder.model.config.model_type} model cannot "
            f"be turned here. Its family says nothing of it (`stream`): norms that subtract means, "
            f"or that stand behind attention and MLP, do not commute with a rotation."
        )
        raise UnsupportedError(msg)
    run = partial(step.method.problem, _width(decoder), step.config)
    if problem := contracts.call(step.name, "compress.steps", run, {}):
        raise ConfigError(f"compress.steps: {step.name}: {problem}.")


def with_turned_inputs(plan: Plan, decoder: Decoder) -> Plan:
    """The plan with the inputs that its rotation turns as the model runs; ConfigError where there
    is no matrix for them, or scales are to be moved to where it stands.
    """
    step, stream = plan.rotation, decoder.family.stream
    if step is None or stream is None or not step.config.turns_inputs:
        return plan
    if moving := sorted({s.name for steps in plan.steps.values() for s in steps if s.transforms}):
        msg = (
            f"compress.steps: {step.name} turns inputs as the model runs, and {', '.join(moving)} "
            f"would move scales of these. Leave one of the two out, or set `online: none`."
        )
        raise ConfigError(msg)
    shapes, inputs = decoder.layer_shapes(), dict(plan.inputs)
    for index in range(len(decoder.blocks)):
        for name in (f"{decoder.family.blocks}.{index}.{of}" for of in stream.writes):
            d_in, declared = shapes[name][1], inputs.get(name)
            if hadamard.core(d_in) is None:
                msg = (
                    f"compress.steps: {step.name}: no Hadamard matrix of {d_in} rows is known "
                    f"here, for the inputs of {name}. Set `online: none`."
                )
                raise ConfigError(msg)
            rounding = (declared.kind, declared.group_size) if declared else (None, None)
            inputs[name] = InputFormat(*rounding, turned=d_in)
    return replace(plan, inputs=inputs)


def _width(decoder: Decoder) -> int:
    width: int = decoder.model.get_input_embeddings().weight.shape[1]
    return width


class Rotating:
    """Turns the stream of a decoder's model.  The proof is a stage of the store."""

    def __init__(
        self,
        decoder: Decoder,
        step: PlannedRotation,
        calibration: Tensor | None,
        store: StageStore,
        inputs: Mapping[str, Any],
        turned: Mapping[str, InputFormat],
    ) -> None:
        """calibration: int64 [samples, seqlen]   inputs: what the proof depends on
        turned: inputs of linears, some of which are turned as the model runs
        """
        self.decoder, self.step, self.calibration = decoder, step, calibration
        self.turned = turned
        self.store, self.inputs = store, inputs

    def run(self) -> None:
        """From now on the decoder reads the turned model; UnsupportedError if it is another one."""
        if self.calibration is None:
            msg = (
                f"{self.step.name}: the recipe has no calibration data, and that the model gives "
                f"what it gave cannot be proven without."
            )
            raise ConfigError(msg)
        width = _width(self.decoder)
        run = partial(self.step.method.rotation, width, self.step.config)
        result = contracts.call(self.step.name, "compress.steps", run, {})
        rotation = contracts.rotation(self.step.name, result, width)
        prove = partial(self._prove, ids=self.calibration[:1], rotation=rotation)
        self.store.fill("rotation", self.inputs, prove)
        self.decoder.rotate(Rotation(rotation, self.turned))

    @torch.no_grad()
    def _prove(self, folder: Path, ids: Tensor, rotation: Tensor) -> None:
        """Run the first calibration sequence through both models, part by part, in float32.

        Each part gets what the dense model gives it, so that rounding does not add up.
        """
        own = self.decoder
        dense, turned = (Decoder(own.folder, torch.float32, own.device) for _ in range(2))
        turned.rotate(Rotation(rotation, self.turned))
        rotation = rotation.to(own.device)
        before, after = (Entering(one, ids, self.store.root) for one in (dense, turned))
        none = torch.zeros_like(before.states[0])
        off = [self._off("the embedding", before, after, none, rotation)]
        for index in range(len(own.blocks)):
            entered = before.states[0].clone()  # the next block's take its place
            after.states[0] = entered @ rotation
            before.advance({})
            after.advance({})
            path = f"{own.family.blocks}.{index}"
            off.append(self._off(path, before, after, entered, rotation))
        hidden = before.states[0]
        expected = _logits(dense, ids, hidden)
        found = _logits(turned, ids, hidden @ rotation)
        off.append(self._judged("the logits", found - expected, expected, expected))
        write_json(folder / FILE, {"largest": max(off)})

    def _off(
        self, where: str, before: Entering, after: Entering, entered: Tensor, rotation: Tensor
    ) -> float:
        """How far a part's outputs are off, as a share of what it adds to its inputs."""
        expected = before.states[0]
        difference = after.states[0] - expected @ rotation
        return self._judged(where, difference, expected - entered, expected)

    def _judged(self, where: str, difference: Tensor, added: Tensor, whole: Tensor) -> float:
        """The share; UnsupportedError if it is more than rounding."""
        share = allowed(torch.float32)
        norm = float(added.norm().clamp_min(1e-30))
        off = float(difference.norm()) / norm
        if off <= share + ROUNDING * float(whole.norm()) / norm:
            return off
        msg = (
            f"{where}: {self.step.name} turned the residual stream, and what comes out here "
            f"changed by {off:.2g} of what is added ({share:.2g} is rounding). In this model "
            f"the rotation is no identity: leave the step out."
        )
        raise UnsupportedError(msg)


def _logits(decoder: Decoder, ids: Tensor, hidden: Tensor) -> Tensor:
    """hidden: what the last block gives, [1, seq, width]"""
    decoder.load_outside_blocks()
    logits = logits_after(decoder.model, decoder.blocks, ids.to(decoder.device), hidden)
    decoder.unload_outside_blocks()
    return logits
