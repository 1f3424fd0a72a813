"""Prefill and decode of one sequence, on any Engine through its DecodeSession.

One repetition is a new session, a prompt of P tokens, then N steps of one token each.  TTFT is the
time of the prompt, TPOT the mean time of a step.  The prompt and, by default, the decoded tokens
are fixed pseudo-random ids: no run depends on what a model would say, and every engine reads the
same tokens.  Batch 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from trinity.harness.engine import Engine
from trinity.harness.latency import machine, timing
from trinity.harness.records.measurement import Measurement
from trinity.methods.errors import ConfigError

Tokens = Literal["fixed", "greedy"]


@dataclass(frozen=True)
class Workload:
    """What one repetition reads.

    tokens: 'fixed' steps through given ids, 'greedy' through the model's own most likely ones
    """

    prompt_tokens: int
    new_tokens: int
    repeats: int
    warmup: int
    tokens: Tokens
    seed: int


@dataclass(frozen=True)
class Repetition:
    """Seconds of the prompt and of each step."""

    ttft_s: float
    steps_s: tuple[float, ...]


def prefill(
    engines: Sequence[Engine], prompt_tokens: int, repeats: int, *, warmup: int = 1, seed: int = 0
) -> list[Measurement]:
    """Per engine: `ttft` in seconds and `prefill` in prompt tokens/s, repetitions interleaved."""
    workload = Workload(prompt_tokens, 0, repeats, warmup, "fixed", seed)
    found: list[Measurement] = []
    for engine, runs in _interleaved(engines, workload):
        details = _details(engine, workload, len(engines))
        times = [run.ttft_s for run in runs]
        found += [
            _seconds(engine, "ttft", times, details),
            _speed(engine, "prefill", [prompt_tokens / t for t in times], details),
        ]
    return found


def decode(
    engines: Sequence[Engine],
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    *,
    warmup: int = 1,
    tokens: Tokens = "fixed",
    seed: int = 0,
) -> list[Measurement]:
    """Per engine: `tpot` in seconds and `decode` in tokens/s, repetitions interleaved."""
    if new_tokens < 1:
        msg = f"latency: new tokens must be at least 1, found {new_tokens}."
        raise ConfigError(msg)
    workload = Workload(prompt_tokens, new_tokens, repeats, warmup, tokens, seed)
    found: list[Measurement] = []
    for engine, runs in _interleaved(engines, workload):
        details = _details(engine, workload, len(engines))
        times = [sum(run.steps_s) / new_tokens for run in runs]
        steps = {"steps_s": [list(run.steps_s) for run in runs]}
        found += [
            _seconds(engine, "tpot", times, details | steps),
            _speed(engine, "decode", [1 / t for t in times], details),
        ]
    return found


def fixed_tokens(vocab_size: int, count: int, seed: int) -> Tensor:
    """Uniform ids, the same on every machine and for every engine.  ->  int64 [count]"""
    return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def _interleaved(
    engines: Sequence[Engine], workload: Workload
) -> list[tuple[Engine, list[Repetition]]]:
    _check(engines, workload)
    # The first ids of a common vocabulary: engines of one model may pad theirs differently.
    one = torch.zeros(1, dtype=torch.int64)
    vocab_size = min(len(engine.session().prefill(one)) for engine in engines)
    ids = fixed_tokens(vocab_size, workload.prompt_tokens + workload.new_tokens, workload.seed)
    calls = [partial(_repetition, engine, ids, workload) for engine in engines]
    runs = timing.interleaved(calls, warmup=workload.warmup, repeats=workload.repeats)
    return list(zip(engines, runs, strict=True))


def _check(engines: Sequence[Engine], workload: Workload) -> None:
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
    """ids: int64 [prompt_tokens + new_tokens]"""
    session = engine.session()
    first = timing.timed(partial(session.prefill, ids[: workload.prompt_tokens]))
    logits = first.result
    steps: list[float] = []
    forced: list[int] = ids[workload.prompt_tokens :].tolist()
    for token in forced:
        chosen = token if workload.tokens == "fixed" else int(logits.argmax())
        step = timing.timed(partial(session.step, chosen))
        logits = step.result
        steps.append(step.seconds)
    return Repetition(first.seconds, tuple(steps))


def _details(engine: Engine, workload: Workload, candidates: int) -> dict[str, Any]:
    return {
        "batch": 1,
        "prompt_tokens": workload.prompt_tokens,
        "new_tokens": workload.new_tokens,
        "tokens": workload.tokens,
        "seed": workload.seed,
        "warmup": workload.warmup,
        "repeats": workload.repeats,
        "interleaved_with": candidates - 1,
        "weights": "dequantized to floats" if engine.path == "simulated" else "as stored",
    } | machine.describe()


def _seconds(
    engine: Engine, name: str, samples: list[float], details: dict[str, Any]
) -> Measurement:
    return timing.measurement(
        engine, name, f"{name}_s", "s", samples, higher_is_better=False, details=details
    )


def _speed(engine: Engine, name: str, samples: list[float], details: dict[str, Any]) -> Measurement:
    return timing.measurement(
        engine, name, "tokens_per_s", "tokens/s", samples, higher_is_better=True, details=details
    )
