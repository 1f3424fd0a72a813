"""Prefill and decode of one or several sequences, on any Engine through its DecodeSession.

One repetition is a new session, a prompt of P tokens for each of B sequences, then N steps of one
token each.  All sequences of a batch have these lengths.  TTFT is the time until every prompt is
read, TPOT the mean time of a step of all sequences; tokens a second count all of them.  Prompts
and, by default, decoded tokens are fixed pseudo-random ids: no run depends on what a model would
say, and every engine reads the same tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from trinity.harness.engines import finite
from trinity.harness.engines.engine import Engine
from trinity.harness.latency import energy, machine, timing
from trinity.harness.records.facts import Conditions
from trinity.harness.records.measurement import Measurement
from trinity.methods.errors import ConfigError

Tokens = Literal["fixed", "greedy"]


@dataclass(frozen=True)
class Workload:
    """What one repetition reads.

    batch: sequences   prompt_tokens, new_tokens: of each
    tokens: 'fixed' steps through given ids, 'greedy' through the model's own most likely ones
    """

    batch: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    warmup: int
    tokens: Tokens
    seed: int

    def named(self, name: str) -> str:
        """A measurement's name: that of one sequence is bare, others never share it."""
        return name if self.batch == 1 else f"{name}-batch-{self.batch}"


@dataclass(frozen=True)
class Repetition:
    """Seconds of the prompt and of each step."""

    ttft_s: float
    steps_s: tuple[float, ...]

    @property
    def tpot_s(self) -> float:
        """Mean seconds of a step."""
        return sum(self.steps_s) / len(self.steps_s)


@dataclass(frozen=True)
class DenseEngine:
    """The baseline: an engine of the model before compression, and a reader's words for it."""

    engine: Engine
    model: str


def prefill(
    engines: Sequence[Engine],
    prompt_tokens: int,
    repeats: int,
    *,
    batch: int = 1,
    warmup: int = 2,
    seed: int = 0,
    baseline: DenseEngine | None = None,
) -> list[Measurement]:
    """Per engine: `ttft` in seconds, `prefill` in prompt tokens/s, and its speed-up to a baseline.

    Repetitions are interleaved.
    """
    workload = Workload(batch, prompt_tokens, 0, repeats, warmup, "fixed", seed)
    timed = _interleaved(engines, workload, baseline)
    found: list[Measurement] = []
    for engine, runs in zip(engines, timed.runs, strict=False):
        details = _details(engine, workload, timed)
        times = [run.ttft_s for run in runs]
        speeds = [batch * prompt_tokens / t for t in times]
        name = workload.named("prefill")
        seconds = _seconds(engine, workload.named("ttft"), "ttft_s", times, details)
        found += [seconds, _speed(engine, name, speeds, details)]
        found += _speedup(seconds, name, timed, lambda run: run.ttft_s)
    return found


def decode(
    engines: Sequence[Engine],
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    *,
    batch: int = 1,
    warmup: int = 2,
    tokens: Tokens = "fixed",
    seed: int = 0,
    baseline: DenseEngine | None = None,
) -> list[Measurement]:
    """Per engine: `tpot` in seconds, `decode` in tokens/s, and its speed-up to a baseline.

    Repetitions are interleaved.
    """
    if new_tokens < 1:
        msg = f"latency: new tokens must be at least 1, found {new_tokens}."
        raise ConfigError(msg)
    workload = Workload(batch, prompt_tokens, new_tokens, repeats, warmup, tokens, seed)
    timed = _interleaved(engines, workload, baseline)
    found: list[Measurement] = []
    for engine, runs in zip(engines, timed.runs, strict=False):
        details = _details(engine, workload, timed)
        times = [run.tpot_s for run in runs]
        steps = {"steps_s": [list(run.steps_s) for run in runs]}
        name = workload.named("decode")
        seconds = _seconds(engine, workload.named("tpot"), "tpot_s", times, details | steps)
        found += [seconds, _speed(engine, name, [batch / t for t in times], details)]
        found += _speedup(seconds, name, timed, lambda run: run.tpot_s)
    return found


def decode_energy(
    engines: Sequence[Engine], prompt_tokens: int, new_tokens: int, *, batch: int = 1, seed: int = 0
) -> list[Measurement]:
    """Per engine: `energy` in joules a decoded token, where this machine counts it.

    Each repetition reads a prompt too, which is in the number.
    """
    source = energy.counter()
    workload = Workload(batch, prompt_tokens, new_tokens, 1, 0, "fixed", seed)
    found = []
    for engine in engines:
        ids = fixed_tokens(2, (batch, prompt_tokens + new_tokens), seed)  # any vocabulary has two

        def decoded(engine: Engine = engine, ids: Tensor = ids) -> int:
            _repetition(engine, ids, workload)
            return batch * new_tokens

        found.append(energy.per_token(engine, workload.named("energy"), decoded, source))
    return found


def _speedup(
    seconds: Measurement, name: str, timed: "_Timed", read: Callable[[Repetition], float]
) -> list[Measurement]:
    if timed.dense is None:
        return []
    first, second = (tuple(read(run) for run in runs) for runs in timed.runs[-2:])
    against = timing.Baseline(timed.dense.engine, timed.dense.model, first, second)
    return [timing.speedup(seconds, against).model_copy(update={"name": name})]


def fixed_tokens(vocab_size: int, shape: tuple[int, int], seed: int) -> Tensor:
    """Uniform ids, the same on every machine and for every engine, other ones in each sequence.

    shape: (batch, seq)  ->  int64 [batch, seq]
    """
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, eq=False)
class _Timed:
    """runs: of each engine; with a baseline, of that one twice at the end   seen: telemetry"""

    runs: list[list[Repetition]]
    warmups: list[int]
    seen: dict[str, Any]
    dense: DenseEngine | None


def _interleaved(
    engines: Sequence[Engine], workload: Workload, dense: DenseEngine | None
) -> _Timed:
    candidates = [*engines, *([dense.engine] * 2 if dense else [])]
    _check(candidates, workload)
    # The first ids of a common vocabulary: engines of one model may pad theirs differently.
    one = torch.zeros(workload.batch, 1, dtype=torch.int64)
    vocab_size = min(engine.session().prefill(one).shape[-1] for engine in candidates)
    shape = (workload.batch, workload.prompt_tokens + workload.new_tokens)
    ids = fixed_tokens(vocab_size, shape, workload.seed)
    calls = [partial(_repetition, engine, ids, workload) for engine in candidates]
    warmups = [timing.warm_up(call, least=workload.warmup) for call in calls]
    with machine.watched() as seen:
        runs = timing.interleaved(calls, warmup=0, repeats=workload.repeats)
    return _Timed(runs, warmups, seen, dense)


def _check(engines: Sequence[Engine], workload: Workload) -> None:
    if workload.batch < 1:
        msg = f"latency: a batch has at least 1 sequence, found {workload.batch}."
        raise ConfigError(msg)
    if workload.prompt_tokens < 1:
        msg = f"latency: prompt tokens must be at least 1, found {workload.prompt_tokens}."
        raise ConfigError(msg)
    needed = workload.prompt_tokens + workload.new_tokens
    for engine in engines:
        if needed > engine.max_length:
            msg = (
                f"latency on {engine.name}: {workload.prompt_tokens} prompt and "
                f"{workload.new_tokens} new tokens need {needed} positions, and this engine has "
                f"{engine.max_length}. Lower bench.prompt or bench.new."
            )
            raise ConfigError(msg)


def _repetition(engine: Engine, ids: Tensor, workload: Workload) -> Repetition:
    """ids: int64 [batch, prompt_tokens + new_tokens]"""
    session = engine.session()
    first = timing.timed(partial(session.prefill, ids[:, : workload.prompt_tokens]))
    logits = first.result
    _check_numbers(engine, logits, ids)
    steps: list[float] = []
    for forced in ids[:, workload.prompt_tokens :].unbind(1):
        chosen = forced if workload.tokens == "fixed" else logits.argmax(-1)
        step = timing.timed(partial(session.step, chosen))
        logits = step.result
        steps.append(step.seconds)
    # What is no number stays in the caches, so the last step shows it; no step waits for a look.
    _check_numbers(engine, logits, ids)
    return Repetition(first.seconds, tuple(steps))


def _check_numbers(engine: Engine, logits: Tensor, ids: Tensor) -> None:
    """A model that computes no numbers is not timed.  logits: float [batch, vocab]"""
    for sequence, row in zip(ids, logits, strict=True):
        if not finite.are_numbers(row):
            with finite.said_of("latency"):
                raise finite.refuse(engine, sequence)


def _details(engine: Engine, workload: Workload, timed: _Timed) -> dict[str, Any]:
    read = Conditions(
        batch=workload.batch,
        prompt_tokens=workload.prompt_tokens,
        new_tokens=workload.new_tokens,
        repeats=workload.repeats,
    ).details("batch", "prompt_tokens", "new_tokens", "repeats")
    said = {
        "tokens": workload.tokens,
        "seed": workload.seed,
        "warmup": f"until steady: {', '.join(map(str, timed.warmups))} repetitions",
        "interleaved_with": len(timed.runs) - 1,
        "weights": "dequantized to floats" if engine.path == "simulated" else "as stored",
    }
    return read | said | machine.describe() | timed.seen


def _seconds(
    engine: Engine, name: str, metric: str, samples: list[float], details: dict[str, Any]
) -> Measurement:
    return timing.measurement(
        engine, name, metric, "s", samples, higher_is_better=False, details=details
    )


def _speed(engine: Engine, name: str, samples: list[float], details: dict[str, Any]) -> Measurement:
    return timing.measurement(
        engine, name, "tokens_per_s", "tokens/s", samples, higher_is_better=True, details=details
    )
