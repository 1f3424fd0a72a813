"""The history of a number: its series over records, where it steps, and what else changed there."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.statistics import comparison, steps
from trinity.harness.statistics.steps import Step
from trinity.harness.tracking import changes, references
from trinity.harness.tracking.changes import Change
from trinity.harness.tracking.references import Kept
from trinity.methods.errors import ConfigError, nearest


@dataclass(frozen=True)
class Which:
    """Globs that choose series; None for all."""

    recipe: str | None = None
    model: str | None = None
    name: str | None = None
    engine: str | None = None
    machine: str | None = None

    def holds(self, found: Record, measurement: Measurement) -> bool:
        """Whether a measurement of a record is among them."""
        values = {
            "recipe": found.recipe["name"],
            "model": found.model.label,
            "name": measurement.name,
            "engine": measurement.engine,
            "machine": found.environment["machine"],
        }
        return all(
            (glob := getattr(self, key)) is None or fnmatchcase(str(value), glob)
            for key, value in values.items()
        )


@dataclass(frozen=True, eq=False)
class Point:
    """One record's number."""

    kept: Kept
    measurement: Measurement

    @property
    def value(self) -> float:
        """Of the measurement, which has one."""
        assert self.measurement.value is not None
        return self.measurement.value


@dataclass(frozen=True, eq=False)
class Series:
    """The same number in one record after another, all measured in the same way.

    name: model, recipe, measurement, metric, engine, and of times the machine
    """

    name: tuple[str, ...]
    points: Sequence[Point]

    @property
    def steps(self) -> list[Step]:
        """Where it steps to another level."""
        return steps.find([point.value for point in self.points])

    def changed(self, step: Step) -> list[Change]:
        """What else is other in the first record after a step than in the last before it."""
        after, before = self.points[step.index], self.points[step.index - 1]
        return changes.causes(after.kept.record, before.kept.record)


def of(metric: str, which: Which, records: Path) -> list[Series]:
    """Every series of a metric; ConfigError if no record has one."""
    kept = references.read_folder(records)
    by_name: dict[tuple[str, ...], list[Point]] = {}
    for one in kept:
        for m in one.record.measurements:
            if m.metric == metric and m.value is not None and which.holds(one.record, m):
                by_name.setdefault(_name(one.record, m), []).append(Point(one, m))
    if not by_name:
        raise ConfigError(_nothing(metric, kept, records))
    return [
        Series(name, points)
        for name, all_points in sorted(by_name.items())
        for points in _measured_alike(all_points)
    ]


def _name(found: Record, m: Measurement) -> tuple[str, ...]:
    machine = (str(found.environment["machine"]),) if _is_timed(m) else ()
    return (found.model.label, str(found.recipe["name"]), m.name, m.metric, m.engine, *machine)


def _is_timed(m: Measurement) -> bool:
    return m.metric in comparison.TIMED or m.metric == comparison.SPEEDUP or m.unit.endswith("/s")


def _measured_alike(points: Sequence[Point]) -> list[list[Point]]:
    """Split where the protocol changed.

    Another text, other windows or another dense model is no step.
    """
    found: list[list[Point]] = []
    for point in points:
        for series in found:
            last = series[-1]
            same_model = last.kept.record.model.sha256 == point.kept.record.model.sha256
            if same_model and not comparison.mismatch(point.measurement, last.measurement):
                series.append(point)
                break
        else:
            found.append([point])
    return found


def _nothing(metric: str, kept: Sequence[Kept], records: Path) -> str:
    if not kept:
        return f"history {metric}: {records} holds no records. Name their folder with --out."
    known = sorted({m.metric for one in kept for m in one.record.measurements})
    if metric in known:
        return f"history {metric}: no record in {records} is of the chosen recipe, model or name."
    hint = nearest(metric, known) or f" Metrics there: {', '.join(known)}."
    return f"history {metric}: no record in {records} has this metric.{hint}"


def as_data(series: Series) -> dict[str, Any]:
    """Plain data of a series: its points, its steps and what changed at each."""
    keys = ("model", "recipe", "name", "metric", "engine", "machine")
    return {
        **dict(zip(keys, series.name, strict=False)),
        "points": [
            {
                "record": point.kept.place,
                "date": point.kept.record.date,
                "commit": changes.commit(point.kept.record),
                "machine": point.kept.record.environment["machine"],
                "value": point.value,
            }
            for point in series.points
        ],
        "steps": [
            {
                "first_record": series.points[step.index].kept.place,
                "commit": changes.commit(series.points[step.index].kept.record),
                "before": step.before,
                "after": step.after,
                "records_after": step.length,
                "worse": (step.after < step.before)
                == series.points[step.index].measurement.higher_is_better,
                "changed": [change.text for change in series.changed(step)],
            }
            for step in series.steps
        ],
    }
