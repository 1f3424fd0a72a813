"""One row a finding, in the form of a record's measurements: plain data, failures included.

Plain, because the classes of `harness/records/` need packages that a bare machine lacks.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

Row = dict[str, Any]
RESAMPLES, SEED = 10_000, 0


def row(name: str, metric: str, value: float | None, unit: str, **more: Any) -> Row:
    """A measurement.  more: other keys than the usual ones, and `reason` where it has no value"""
    found: Row = {"name": name, "metric": metric, "value": value, "unit": unit}
    usual = {"higher_is_better": False, "path": "kernel", "engine": "iree", "interval": None}
    usual |= {"samples": [], "details": {}, "reason": None, "seeds": None}
    return found | usual | more


def failed(name: str, metric: str, reason: str, **more: Any) -> Row:
    """A row of what could not be measured, or was wrong, and why."""
    return row(name, metric, None, "1", **{**more, "reason": reason})


def seconds(name: str, samples: Sequence[float], **more: Any) -> Row:
    """The median of some times."""
    kept = list(samples)
    return row(name, "seconds", median(kept), "s", **{**more, "samples": kept})


def speedup(name: str, ours: Sequence[float], theirs: Sequence[float], **more: Any) -> Row:
    """Their seconds over ours, measured in turn, with the interval of `paired_ratio`."""
    found: dict[str, Any] = {"higher_is_better": True, "interval": paired_interval(theirs, ours)}
    found["samples"] = [b / a for a, b in zip(ours, theirs, strict=True)]
    return row(name, "speedup", median(theirs) / median(ours), "1", **{**more, **found})


def paired_interval(a: Sequence[float], b: Sequence[float]) -> dict[str, Any] | None:
    """As `paired_ratio` of harness/statistics/intervals.py, to the bit; a test compares them."""
    if len(a) < 2:
        return None
    pairs = np.stack([np.asarray(a, np.float64), np.asarray(b, np.float64)], axis=-1)
    drawn = pairs[np.random.default_rng(SEED).integers(0, len(pairs), (RESAMPLES, len(pairs)))]
    ratios = np.median(drawn[..., 0], axis=-1) / np.median(drawn[..., 1], axis=-1)
    low, high = np.quantile(ratios, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    method = f"percentile, {RESAMPLES} resamples, seed {SEED}"
    method = f"paired bootstrap, ratio of medians, {method}"
    return {"low": float(low), "high": float(high), "level": 0.95, "method": method}
