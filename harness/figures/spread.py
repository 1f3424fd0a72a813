"""How far a number moves: between calibration seeds, and from one record to the next."""

from collections.abc import Iterator, Sequence

from trinity.harness.figures.figure import Choice, Figure, Option, Row, significant
from trinity.harness.figures.shown import Shown, key_of
from trinity.harness.records.measurement import Measurement
from trinity.harness.report.judged import heading
from trinity.harness.report.numbers import scale_of, value_text
from trinity.harness.report.verdicts import ACCURACY
from trinity.harness.statistics import comparison, steps
from trinity.harness.statistics.comparison import SPEEDUP
from trinity.harness.tracking import changes

FOLLOWED = (*ACCURACY, SPEEDUP, "tpot_s", "ttft_s")
COMMIT = 7  # digits of a commit's name that are shown


def seeds(runs: Sequence[Shown]) -> Figure:
    """Accuracies of runs with several calibration seeds."""
    name, title = "seeds", "Spread between calibration seeds"
    says = (
        "Each dot is the run with another draw of calibration text, the line their mean and "
        "standard deviation. A difference between methods that is no larger says nothing."
    )
    rows: list[Row] = []
    options: dict[str, Option] = {}
    for run in runs:
        for m in run.record.measurements:
            if m.seeds is None:
                continue
            of = f"{run.model}|{m.name}|{m.metric}"
            options.setdefault(of, Option(of, f"{run.model}, {heading(m)}", {"x": heading(m)}))
            factor, _ = scale_of(m.metric, m.unit, m.seeds.mean)
            for value in m.seeds.values:
                rows.append(
                    {
                        "of": of,
                        "run": run.name,
                        "value": significant(factor * value),
                        "mean": significant(factor * m.seeds.mean),
                        "low": significant(factor * (m.seeds.mean - m.seeds.deviation)),
                        "high": significant(factor * (m.seeds.mean + m.seeds.deviation)),
                        "record": run.path,
                    }
                )
    if not rows:
        lacking = (
            "No record here has more than one calibration seed. `calibration: {seeds: [0, 1, 2]}` "
            "in a recipe repeats the run with each and records the spread."
        )
        return Figure(name, title, says, lacking=lacking)
    return Figure(name, title, says, tuple(rows), (Choice("of", "Of", tuple(options.values())),))


def history(runs: Sequence[Shown]) -> Figure:
    """The series of every measurement that a recipe's records share, the oldest first."""
    name, title = "history", "History"
    says = (
        "The same recipe on the same kind of machine, record by record, the oldest on the left. "
        "Times of different hours move with the machine's load; ratios to the dense model do not. "
        "From six records on, a line shows the level and a triangle each step, with what changed."
    )
    rows: list[Row] = []
    kept: dict[str, Option] = {}
    names: dict[str, Option] = {}
    for run in runs:
        if len(run.history) < 2:
            continue
        for metric in {key_of(m): m for m in run.record.measurements if m.metric in FOLLOWED}:
            series = _series(run, metric)
            if len(series) < 2:
                continue
            of = "|".join(metric)
            kept.setdefault(of, Option(of, _label(series[-1][2]), _axis(series[-1][2])))
            who = f"{run.model}|{run.name}|{run.machine}"
            names.setdefault(who, Option(who, run.name, {}))
            rows += _with_steps([_moment(who, of, *moment) for moment in series], series)
    if not rows:
        lacking = "Every recipe has one record only. A second run of it begins a history."
        return Figure(name, title, says, lacking=lacking)
    choices = (
        Choice("who", "Recipe", tuple(names.values())),
        Choice("of", "Measured by", tuple(kept.values())),
    )
    return Figure(name, title, says, tuple(rows), choices)


def _series(run: Shown, key: tuple[str, str, str]) -> list[tuple[str, Shown, Measurement]]:
    found = []
    for path, record in run.history:
        m = record.find(*key)
        if m is not None and m.value is not None:
            found.append((path, Shown(record, path, []), m))
    # Another protocol is another series: the newest one's is shown.
    return [moment for moment in found if not comparison.mismatch(moment[2], found[-1][2])]


def _with_steps(rows: list[Row], series: Sequence[tuple[str, Shown, Measurement]]) -> Iterator[Row]:
    """Rows with their place in time, their level, and what changed where that steps."""
    found = {step.index: step for step in steps.find([float(row["value"] or 0.0) for row in rows])}
    level = next(iter(found.values())).before if found else None
    for index, row in enumerate(rows):
        more: Row = {"order": float(index), "when": f"{index + 1}: {row['when']}"}
        if index in found:
            level = found[index].after
            after, before = series[index][1].record, series[index - 1][1].record
            changed = ", ".join(change.text for change in changes.causes(after, before))
            more["step"] = f"step: {changed or 'nothing else changed'}"
        yield {**row, **more, **({} if level is None else {"level": significant(level)})}


def _moment(who: str, of: str, path: str, run: Shown, m: Measurement) -> Row:
    assert m.value is not None
    factor, _ = scale_of(m.metric, m.unit, m.value)
    low, high = (m.interval.low, m.interval.high) if m.interval else (m.value, m.value)
    commit = str(run.record.environment.get("commit") or "unknown")[:COMMIT]
    return {
        "who": who,
        "of": of,
        "when": f"{run.record.date}, {commit}",
        "value": significant(factor * m.value),
        "low": significant(factor * low),
        "high": significant(factor * high),
        "said": value_text(m),
        "path": m.path,
        "record": path,
    }


def _label(m: Measurement) -> str:
    name = heading(m) if m.metric in ACCURACY else f"{m.name} {m.metric.replace('_', ' ')}"
    return f"{name}, {m.engine}"


def _axis(m: Measurement) -> dict[str, str]:
    _, unit = scale_of(m.metric, m.unit, m.value or 0.0)
    return {"y": f"{_label(m)}{f', {unit}' if unit not in ('', '%') else ''}"}
