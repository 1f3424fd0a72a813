"""What a gate asks for: `gate.yaml`, a file in the user's repository.

docs/tracking.md explains every key.
"""

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat

from trinity.harness.recipes import sections
from trinity.harness.recipes.sections import Section
from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics.comparison import SIZES, SPEEDUP, TIMED
from trinity.methods.errors import ConfigError

Metric = Literal[
    "perplexity",
    "acc",
    "kl",
    "top1_agreement",
    "flip_rate",
    "speedup",
    "stored_bytes",
    "bits_per_weight",
]
RATIOS = frozenset({"perplexity", SPEEDUP, *SIZES})
"""Metrics whose effect is a ratio; of the others it is a difference."""
_UNITS = {"%": 0.01, "point": 0.01, "points": 0.01, "nats": 1.0}


def _amount(value: Any) -> Any:
    """'5%', '1 point', '0.01 nats' or a plain number, to a number."""
    if not isinstance(value, str):
        return value
    words = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)\s*([a-z%]*)", value.strip())
    if words is None or (words[2] and words[2] not in _UNITS):
        msg = "should be a number, '5%', '1 point' or '0.01 nats'"
        raise ValueError(msg)
    return float(words[1]) * _UNITS.get(words[2], 1.0)


Amount = Annotated[NonNegativeFloat, BeforeValidator(_amount)]


class Check(Section):
    """One metric that is judged.

    names: globs over the names of measurements
    allow: how much worse is let through: a share of the baseline's (perplexity, speed, size),
        points (accuracy, agreement, flips) or nats
    minimum: an effect that is smaller than this is none, however certain
    severity: 'warn' says so and passes
    unjudged: 'note' where it does not matter that nothing can be said (speed, on machines that
        change)
    """

    metric: Metric
    names: tuple[str, ...] = ("*",)
    allow: Amount = 0.0
    minimum: Amount = 0.0
    severity: Literal["fail", "warn"] = "fail"
    unjudged: Literal["fail", "note"] = "fail"

    def covers(self, measurement: Measurement) -> bool:
        """Whether this check is about a measurement."""
        return self.names_metric(measurement.name, measurement.metric)

    def names_metric(self, name: str, metric: str) -> bool:
        """The same of a measurement's name and metric."""
        return metric == self.metric and any(fnmatchcase(name, glob) for glob in self.names)


class Policy(Section):
    """A whole gate.

    recipes: files or globs, from the policy's own folder   records: where records are kept, from
    the same folder   minutes: how long the run of one recipe may take
    """

    recipes: tuple[str, ...] = Field(min_length=1)
    records: str = "results"
    minutes: PositiveFloat = 60.0
    checks: tuple[Check, ...] = Field(min_length=1)


def read(path: Path) -> Policy:
    """A policy file; ConfigError says which key is wrong."""
    data = sections.read_mapping(path, "gate policy", "recipes")
    checks = data.get("checks")
    for check in checks if isinstance(checks, list) else ():
        metric = check.get("metric") if isinstance(check, dict) else None
        if isinstance(metric, str) and metric in TIMED:
            msg = (
                f"gate policy {path}: metric '{metric}' is a time of one process on one "
                f"machine, and says nothing beside another's. Judge 'speedup': the ratio to the "
                f"dense model, timed in turn with it (`bench: {{baseline: dense}}` in the recipe)."
            )
            raise ConfigError(msg)
    return sections.parse(Policy, data, f"gate policy {path}")


def recipes(policy: Policy, folder: Path) -> list[Path]:
    """The recipe files of a policy; ConfigError for a name or glob that matches none."""
    matched: list[Path] = []
    for pattern in policy.recipes:
        if Path(pattern).is_absolute():
            msg = f"gate policy: recipe '{pattern}': give it from the policy's own folder."
            raise ConfigError(msg)
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
        if not files:
            msg = f"gate policy: recipe '{pattern}' matches no file in {folder}."
            raise ConfigError(msg)
        matched += files
    return list(dict.fromkeys(matched))
