"""One measured number with everything that makes it checkable."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from trinity.harness.store.stages import read_json, write_json

FILE = "measurements.json"
MeasurementPath = Literal["simulated", "reference", "compiled", "kernel"]
"""How a number came about.

simulated: torch, weights dequantized to floats   reference: torch, packed weights
compiled: IREE code generation, packed weights     kernel: this project's own kernels inside IREE
"""


class Interval(BaseModel):
    """A two-sided interval, and how it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    level: float = 0.95
    method: str


class SeedSpread(BaseModel):
    """The same number from other calibration seeds; no part of the sampling interval.

    values: one a seed, in the order of the recipe, the first being the measurement's own
    deviation: standard deviation between seeds, with n - 1
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: list[float]
    mean: float
    deviation: float


def seed_spread(values: Sequence[float]) -> SeedSpread | None:
    """Mean and standard deviation over seeds; None for fewer than two.  values: [seeds]"""
    if len(values) < 2:
        return None
    return SeedSpread(values=list(values), mean=fmean(values), deviation=stdev(values))


class Measurement(BaseModel):
    """A number, its unit, its samples and the path that produced it.

    name: what was measured, unique in a record: 'wikitext2', 'piqa', 'decode'
    metric: 'perplexity', 'acc', 'tokens_per_s'
    value: None if it could not be measured, and then `reason` says why
    samples: one number for each window, example or repetition, in order
    details: what the number depends on: seqlen, windows, task version, prompt tokens, threads
    seeds: the spread over calibration seeds, if the recipe asks for several
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    metric: str
    value: float | None
    unit: str
    higher_is_better: bool
    path: MeasurementPath
    engine: str
    interval: Interval | None = None
    samples: list[float] = []
    details: dict[str, Any] = {}
    reason: str | None = None
    seeds: SeedSpread | None = None


def save(folder: Path, found: Sequence[Measurement]) -> None:
    """Fill a stage with measurements."""
    write_json(folder / FILE, [m.model_dump(mode="json") for m in found])


def load(folder: Path) -> list[Measurement]:
    """The measurements of a stage."""
    return [Measurement.model_validate(m) for m in read_json(folder / FILE)]


def with_spread(seeds: Sequence[Measurement]) -> Measurement:
    """The first seed's measurement with the spread over all, or with why there is none.

    seeds: the same measurement of each seed, in the order of the recipe
    """
    first, values = seeds[0], [m.value for m in seeds if m.value is not None]
    if len(values) == len(seeds):
        return first.model_copy(update={"seeds": seed_spread(values)})
    reason = next(m.reason for m in seeds if m.value is None)
    lost = {"seeds_missing": f"no value of {len(seeds) - len(values)} of {len(seeds)}: {reason}"}
    return first.model_copy(update={"details": {**first.details, **lost}})
