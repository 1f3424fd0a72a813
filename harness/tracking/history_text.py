"""A history as people read it: a line a series, or a line a record of one; then every step."""

from collections.abc import Sequence

from trinity.harness.report.numbers import scaled
from trinity.harness.statistics.steps import Step
from trinity.harness.terminal.grid import Column, Grid
from trinity.harness.tracking import changes
from trinity.harness.tracking.history import Point, Series

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 24
_MOST_CHANGES = 8


def grid(found: Sequence[Series]) -> Grid:
    """A row a series; of a single one a row a record.  Below it, what happened at each step."""
    steps = [_step(series, step) for series in found for step in series.steps]
    if len(found) == 1:
        return _points(found[0], steps or ["no step to another level"])
    columns = [
        Column("model"),
        Column("recipe"),
        Column("measurement"),
        Column("engine"),
        Column("machine", spare=2),
        Column("records", right=True),
        Column("series"),
        Column("latest", right=True),
        Column("steps", right=True),
    ]
    rows = [
        [
            series.name[0],
            series.name[1],
            f"{series.name[2]} {series.name[3].replace('_', ' ')}",
            series.name[4],
            "".join(series.name[5:]),
            str(len(series.points)),
            bars([point.value for point in series.points]),
            _value(series.points[-1]),
            str(len(series.steps) or ""),
        ]
        for series in found
    ]
    return Grid("", columns, rows, steps or ["no step to another level in any series"])


def bars(values: Sequence[float]) -> str:
    """The latest values as bars between the least and the largest."""
    shown = values[-_MOST_BARS:]
    low, high = min(shown), max(shown)
    if low == high:
        return _BARS[0] * len(shown)
    top = len(_BARS) - 1
    return "".join(_BARS[round(top * (value - low) / (high - low))] for value in shown)


def _points(series: Series, notes: Sequence[str]) -> Grid:
    columns = [
        Column("date"),
        Column("commit"),
        Column("machine", spare=2),
        Column("value", right=True),
        Column("step"),
        Column("record", spare=1),
    ]
    starts = {step.index: step for step in series.steps}
    rows = [
        [
            point.kept.record.date,
            _commit(point),
            str(point.kept.record.environment["machine"]),
            _value(point),
            _direction(series, starts[index]) if index in starts else "",
            point.kept.place,
        ]
        for index, point in enumerate(series.points)
    ]
    return Grid(" ".join(series.name), columns, rows, notes)


def _step(series: Series, step: Step) -> str:
    """'decode speedup of wanda: 5.4x -> 4.1x (worse) first in ..., commit ...; changed: ...'."""
    first = series.points[step.index]
    m = first.measurement
    before, after = (scaled(m.metric, m.unit, value) for value in (step.before, step.after))
    listed = [change.text for change in series.changed(step)]
    more = f" and {len(listed) - _MOST_CHANGES} more" if len(listed) > _MOST_CHANGES else ""
    changed = "; ".join(listed[:_MOST_CHANGES]) + more if listed else "nothing that is recorded"
    once = "" if step.length > 1 else ", seen once only: run it again"
    return (
        f"STEP {m.name} {m.metric} of {series.name[1]} ({m.engine}): {before} -> {after} "
        f"({_direction(series, step)}{once}), first in {first.kept.place}, commit "
        f"{_commit(first)}. Changed: {changed}."
    )


def _direction(series: Series, step: Step) -> str:
    better = (step.after > step.before) == series.points[step.index].measurement.higher_is_better
    return "better" if better else "worse"


def _value(point: Point) -> str:
    m = point.measurement
    return scaled(m.metric, m.unit, point.value)


def _commit(point: Point) -> str:
    commit = changes.commit(point.kept.record)
    return commit[:12] if commit else "unknown"
