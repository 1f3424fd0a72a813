"""Timing: warm-up, repetitions that alternate between candidates, every raw sample kept.

Candidates are timed A B A B, never A A B B: a machine that slows down half-way slows both, and
the i-th samples of two candidates are a pair.  The baseline is timed twice in every round: what A
against A shows is the noise floor, and only a ratio whose interval lies beyond it has a word.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from trinity.harness.records.facts import Conditions, Speedup
from trinity.harness.records.measurement import Interval, Measurement, MeasurementPath
from trinity.harness.statistics import intervals
from trinity.harness.statistics.comparison import SPEEDUP, speed_verdict
from trinity.methods.errors import ConfigError

T = TypeVar("T")

# Threads of torch's pool go on spinning for some 5 ms after their work, on processors that the next
# candidate's own threads want.
SETTLE_S = 0.02


class Timed(Protocol):
    """What was timed: an engine, or one product on it."""

    @property
    def name(self) -> str:
        """Of the engine."""
        ...

    @property
    def path(self) -> MeasurementPath:
        """How its numbers come about."""
        ...


@dataclass(frozen=True)
class Timing(Generic[T]):
    """One repetition: seconds between synchronised clocks, and what the call returned."""

    seconds: float
    result: T


def interleaved(calls: Sequence[Callable[[], T]], *, warmup: int, repeats: int) -> list[list[T]]:
    """Warm up every call, then run all in turn `repeats` times, each on a quiet machine.

    -> results by call
    """
    if warmup < 0 or repeats < 1:
        msg = (
            f"timing: warmup must be at least 0 and repeats at least 1, found {warmup} and "
            f"{repeats}."
        )
        raise ConfigError(msg)
    for call in calls:
        for _ in range(warmup):
            call()
    results: list[list[T]] = [[] for _ in calls]
    with _no_collection():
        for _ in range(repeats):
            for call, kept in zip(calls, results, strict=True):
                time.sleep(SETTLE_S)
                kept.append(call())
    return results


def warm_up(
    call: Callable[[], object], *, least: int = 2, most: int = 8, within: float = 0.05
) -> int:
    """Call until a call is no longer faster than all before it by more than a share `within`.

    least, most: how often at least and at most   ->  how often it was called
    """
    fastest = float("inf")
    for number in range(1, most + 1):
        seconds = timed(call).seconds
        if number >= least and seconds >= fastest * (1 - within):
            return number
        fastest = min(fastest, seconds)
    return most


def timed(call: Callable[[], T]) -> Timing[T]:
    """Seconds that a call takes on the wall clock, asynchronous work included."""
    synchronise()
    start = time.perf_counter()
    result = call()
    synchronise()
    return Timing(time.perf_counter() - start, result)


def back_to_back(call: Callable[[], object], *, least_s: float = 0.02) -> float:
    """Mean seconds of a call among calls without a pause, as a decoder makes them.

    least_s: they go on for so long; as long before, untimed, wakes threads and fills caches
    """
    _calls_within(call, least_s)
    seconds, calls = _calls_within(call, least_s)
    return seconds / calls


def _calls_within(call: Callable[[], object], least_s: float) -> tuple[float, int]:
    """Call until so many seconds are over.  -> the seconds it took, the number of calls"""
    synchronise()
    start, calls = time.perf_counter(), 0
    while True:
        call()
        calls += 1
        synchronise()
        seconds = time.perf_counter() - start
        if seconds >= least_s:
            return seconds, calls


def synchronise() -> None:
    """Wait for queued GPU work.  IREE engines hand back host arrays: nothing left to wait for."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch left it unannotated
        torch.cuda.synchronize()


def measurement(
    engine: Timed,
    name: str,
    metric: str,
    unit: str,
    samples: Sequence[float],
    *,
    higher_is_better: bool,
    details: dict[str, Any],
) -> Measurement:
    """The median with its bootstrap interval; quartiles go into the details."""
    low, middle, high = intervals.quartiles(samples)
    return Measurement(
        name=name,
        metric=metric,
        value=middle,
        unit=unit,
        higher_is_better=higher_is_better,
        path=engine.path,
        engine=engine.name,
        interval=intervals.median_interval(samples),
        samples=list(samples),
        details=details | {"statistic": "median", "quartile_1": low, "quartile_3": high},
    )


@dataclass(frozen=True)
class Baseline:
    """What candidates are timed against: seconds of two copies of it, in turn with them.

    model: a reader's words for it   first, second: [repetitions], the same engine twice
    """

    engine: Timed
    model: str
    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def noise(self) -> Interval | None:
        """The interval of the baseline's ratio to itself."""
        return intervals.paired_ratio(self.first, self.second)

    @property
    def noise_floor(self) -> float | None:
        """The largest |log ratio| that timing one thing against itself gave."""
        noise = self.noise
        if noise is None or noise.low <= 0:
            return None
        return max(abs(math.log(noise.low)), abs(math.log(noise.high)))


def speedup(ours: Measurement, baseline: Baseline) -> Measurement:
    """Baseline's seconds over ours (above 1 is faster), with a paired interval and a verdict.

    ours: a measurement of seconds, timed in turn with the baseline
    """
    seconds = baseline.first
    if ours.unit != "s" or len(ours.samples) != len(seconds):
        msg = (
            f"timing: {ours.name} ({ours.unit}, {len(ours.samples)} samples) and its baseline (s, "
            f"{len(seconds)} samples) are no pair. Measure both in one interleaved run."
        )
        raise ConfigError(msg)
    interval = intervals.paired_ratio(seconds, ours.samples)
    floor = baseline.noise_floor
    simulated = ours.path == "simulated"
    verdict = "not timed: dequantized weights" if simulated else "no noise floor"
    if not simulated and floor is not None:
        verdict = speed_verdict(interval, floor)
    noise = baseline.noise
    against = Speedup(
        baseline_engine=baseline.engine.name,
        baseline_path=baseline.engine.path,
        baseline_model=baseline.model,
        baseline_s=list(seconds),
        baseline_again_s=list(baseline.second),
        noise_floor=floor,
        noise_interval=[noise.low, noise.high] if noise else None,
        verdict=verdict,
    )
    return Measurement(
        name=ours.name,
        metric=SPEEDUP,
        value=intervals.quartiles(seconds)[1] / intervals.quartiles(ours.samples)[1],
        unit="1",
        higher_is_better=True,
        path=ours.path,
        engine=ours.engine,
        interval=interval,
        samples=[b / a for a, b in zip(ours.samples, seconds, strict=True)],
        details=Conditions.of(ours).details() | against.details(),
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's cyclic garbage collector, whose pauses would fall into some samples."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
