"""One measured number with everything that makes it checkable."""

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


class Measurement(BaseModel):
    """A number, its unit, its samples and the path that produced it.

    name: what was measured, unique in a record: 'wikitext2', 'piqa', 'decode'
    metric: 'perplexity', 'acc', 'tokens_per_s'
    value: None if it could not be measured, and then `reason` says why
    samples: one number for each window, example or repetition, in order
    details: what the number depends on: seqlen, windows, task version, prompt tokens, threads
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
