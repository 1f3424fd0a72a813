"""One measured number with everything that makes it checkable."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from pydantic import BaseModel, ConfigDict

from trinity.harness.engine import MeasurementPath


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
