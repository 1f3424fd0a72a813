"""The training loop: plain PyTorch over any causal language model of transformers.

What is trained, and how it steps, is a `Job`; the loop draws windows, adds gradients up, and keeps
what is needed to go on after a kill.  Everything that the next step depends on is in the snapshot,
so a resumed training ends with the bytes of one that was not interrupted.
"""

import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.records.environment import environment
from trinity.harness.terminal.progress import Reporter
from trinity.harness.training.snapshots import Snapshots
from trinity.harness.training.workers import Workers
from trinity.methods.errors import ConfigError

LAST_SHARE = 0.1  # of the learning rate, where a cosine ends
SEED_STRIDE = 1_000_003  # prime: seeds of two runs next to each other share no step's


class Job(Protocol):
    """What is trained."""

    model: nn.Module

    def begin(self, step: int) -> bool:
        """Before step `step`, from 0; whether parameters were added."""

    def loss(self, model: nn.Module, windows: Tensor) -> Tensor:
        """The mean loss.  model: `self.model`, or what shares its gradients with other processes

        windows: int64 [sequences, seqlen]
        """

    def update(self, lr: float) -> None:
        """Step, from the gradients that are there."""

    def state(self) -> dict[str, Any]:
        """All that the next step depends on: tensors, numbers, and dicts of them.

        Asked for in every process at once; what the first one gets is kept.
        """

    def load(self, state: dict[str, Any]) -> None:
        """Take what `state` gave, into a job that was made in the same way."""


@dataclass
class Course:
    """losses: of every step, in nats per token   runs: of the processes that took the steps"""

    losses: list[float] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)


def learning_rate(spec: TrainingSpec, step: int) -> float:
    """Of step `step`, from 0: linear over the warm-up, then constant or half a cosine."""
    if step < spec.warmup:
        return spec.lr * (step + 1) / spec.warmup
    if spec.schedule == "constant":
        return spec.lr
    done = (step - spec.warmup) / max(1, spec.steps - spec.warmup)
    return spec.lr * (LAST_SHARE + (1 - LAST_SHARE) * (1 + math.cos(math.pi * done)) / 2)


def check_shares(spec: TrainingSpec, processes: int) -> None:
    """ConfigError if a step's windows cannot be shared out evenly."""
    parts = processes * spec.accumulate
    if spec.batch % parts:
        msg = (
            f"training: {spec.batch} windows of a step are not divisible by {processes} processes "
            f"times accumulate {spec.accumulate}. Give a `batch` that is."
        )
        raise ConfigError(msg)


def run(
    job: Job,
    ids: Tensor,
    spec: TrainingSpec,
    generator: torch.Generator,
    workers: Workers,
    reporter: Reporter,
    snapshots: Snapshots | None = None,
) -> Course:
    """Take all steps that are left.

    ids: int64 [tokens], on the CPU, the text   generator: of the CPU, as the job was made with it
    """
    if len(ids) <= spec.seqlen:
        msg = f"training: the text has {len(ids)} tokens, and a window {spec.seqlen}."
        raise ConfigError(msg)
    course = _resumed(job, generator, snapshots)
    first, start, model = len(course.losses), time.monotonic(), job.model
    for step in range(first, spec.steps):
        if job.begin(step) or step == first:
            job.model.train()
            model = workers.parallel(job.model)
        windows = workers.share(drawn(ids, spec, generator)).to(workers.device)
        # What a model draws itself (dropout) follows from the step, so it needs no snapshot.
        torch.manual_seed(spec.seed * SEED_STRIDE + step * workers.count + workers.rank)
        course.losses.append(workers.mean(_backward(job, model, windows, spec)))
        job.update(learning_rate(spec, step))
        done = step + 1
        _check_finite(course.losses[-1], step)
        left_s = (time.monotonic() - start) / (done - first) * (spec.steps - done)
        reporter.step("training", done, spec.steps, left_s)
        if snapshots and done % snapshots.every == 0 and done < spec.steps:
            state = _state(job, generator, course, _run(first, start, workers))
            if not workers.rank:
                snapshots.keep(state)
    if first < spec.steps:
        course.runs.append(_run(first, start, workers))
    return course


def drawn(ids: Tensor, spec: TrainingSpec, generator: torch.Generator) -> Tensor:
    """A step's windows, anywhere in the text.  -> int64 [batch, seqlen]"""
    starts = torch.randint(0, len(ids) - spec.seqlen, (spec.batch,), generator=generator)
    return torch.stack([ids[i : i + spec.seqlen] for i in starts.tolist()])


def _backward(job: Job, model: nn.Module, windows: Tensor, spec: TrainingSpec) -> float:
    """Gradients of the mean loss of all windows, added up over parts.  -> that loss"""
    job.model.zero_grad()
    total, parts = 0.0, windows.chunk(spec.accumulate)
    # A cache would hold narrow copies of all weights at once, and each is used once.
    narrow = torch.autocast(
        windows.device.type,
        torch.bfloat16,
        enabled=spec.precision == "bfloat16",
        cache_enabled=False,
    )
    for number, part in enumerate(parts):
        # A divided model sends the gradients of every part: until then a process holds all of them.
        waits = number + 1 < len(parts) and isinstance(model, DistributedDataParallel)
        with model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]  # told above
            with narrow:
                loss = job.loss(model, part) / len(parts)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        total += loss.item()
    return total


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        msg = f"training: the loss of step {step} is {loss}. Lower `lr`, or give a `warmup`."
        raise ConfigError(msg)


def _run(first: int, start: float, workers: Workers) -> dict[str, Any]:
    """What a record says of the process that took steps from `first` on."""
    return {
        "first_step": first,
        "seconds": time.monotonic() - start,
        "processes": workers.count,
        "device": workers.device.type,
        "environment": environment(),
    }


def _state(
    job: Job, generator: torch.Generator, course: Course, here: dict[str, Any]
) -> dict[str, Any]:
    return {
        "losses": course.losses,
        "runs": [*course.runs, here],
        "generator": generator.get_state(),
        "job": job.state(),
    }


def _resumed(job: Job, generator: torch.Generator, snapshots: Snapshots | None) -> Course:
    """Where the last snapshot was, or the start."""
    last = snapshots.last() if snapshots else None
    if last is None:
        return Course()
    job.load(last["job"])
    generator.set_state(last["generator"])
    return Course(list(last["losses"]), list(last["runs"]))
