"""Timing: warm-up, repetitions that alternate between candidates, every raw sample kept.

Candidates are timed A B A B, never A A B B: a machine that slows down half-way slows both, and
the i-th samples of two candidates are a pair.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from trinity.harness import statistics
from trinity.harness.engine import Engine
from trinity.harness.records.measurement import Measurement
from trinity.methods.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Timing(Generic[T]):
    """One repetition: seconds between synchronised clocks, and what the call returned."""

    seconds: float
    result: T


def interleaved(calls: Sequence[Callable[[], T]], *, warmup: int, repeats: int) -> list[list[T]]:
    """Warm up every call, then run all in turn `repeats` times; results by call."""
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
                kept.append(call())
    return results


def timed(call: Callable[[], T]) -> Timing[T]:
    """Seconds that a call takes on the wall clock, asynchronous work included."""
    synchronise()
    start = time.perf_counter()
    result = call()
    synchronise()
    return Timing(time.perf_counter() - start, result)


def synchronise() -> None:
    """Wait for queued GPU work.  IREE engines hand back host arrays: nothing left to wait for."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch left it unannotated
        torch.cuda.synchronize()


def measurement(
    engine: Engine,
    name: str,
    metric: str,
    unit: str,
    samples: Sequence[float],
    *,
    higher_is_better: bool,
    details: dict[str, Any],
) -> Measurement:
    """The median with its bootstrap interval; quartiles go into the details."""
    low, middle, high = statistics.quartiles(samples)
    return Measurement(
        name=name,
        metric=metric,
        value=middle,
        unit=unit,
        higher_is_better=higher_is_better,
        path=engine.path,
        engine=engine.name,
        interval=statistics.median_interval(samples),
        samples=list(samples),
        details=details | {"statistic": "median", "quartile_1": low, "quartile_3": high},
    )


def ratio(ours: Measurement, baseline: Measurement) -> Measurement:
    """median(ours) / median(baseline) of two interleaved measurements, with a paired interval."""
    same = ("name", "metric", "unit")
    differing = [key for key in same if getattr(ours, key) != getattr(baseline, key)]
    if differing or len(ours.samples) != len(baseline.samples):
        msg = (
            f"timing: {ours.name} ({ours.metric}, {len(ours.samples)} samples) and {baseline.name} "
            f"({baseline.metric}, {len(baseline.samples)} samples) are no pair. Measure both in "
            "one interleaved run."
        )
        raise ConfigError(msg)
    return Measurement(
        name=f"{ours.name}-ratio",
        metric=f"{ours.metric}_ratio",
        value=statistics.quartiles(ours.samples)[1] / statistics.quartiles(baseline.samples)[1],
        unit="1",
        higher_is_better=ours.higher_is_better,
        path=ours.path,
        engine=ours.engine,
        interval=statistics.paired_ratio(ours.samples, baseline.samples),
        samples=[a / b for a, b in zip(ours.samples, baseline.samples, strict=True)],
        details={"baseline_engine": baseline.engine, "baseline_path": baseline.path},
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
