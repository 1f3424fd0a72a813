"""Accuracy against what it costs: bits per weight, or the speed that they buy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trinity.harness.figures.figure import Choice, Figure, Option, Row, significant
from trinity.harness.figures.shown import Key, Shown, key_of
from trinity.harness.records.facts import AVERAGE, Average, Questions, Text
from trinity.harness.records.measurement import Measurement
from trinity.harness.report.judged import heading
from trinity.harness.report.numbers import interval_text, scale_of, value_text
from trinity.harness.report.verdicts import accuracy_measurements
from trinity.harness.statistics import comparison
from trinity.harness.statistics.comparison import SPEEDUP

IREE = "iree"
FEWEST = 3  # runs that a figure needs
FRONT = (
    "The line joins the Pareto front, numbered from the left: the runs that no other run beats in "
    "both. Bars are 95% "
    "intervals; two that overlap may still differ, which the paired verdict of each point says."
)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs of one model that were measured on the same samples."""

    key: Key
    members: list[tuple[Shown, Measurement]]

    @property
    def name(self) -> str:
        """What tells it from other groups."""
        run, m = self.members[0]
        return "|".join((run.model, *key_of(m), str(Text.of(m).windows or "")))

    @property
    def label(self) -> str:
        """'SmolLM2-135M-Instruct, wikitext2 ppl (10 windows)'."""
        run, m = self.members[0]
        windows, examples = Text.of(m).windows, Questions.of(m).examples
        if m.name == AVERAGE:
            return f"{run.model}, mean of {len(Average.of(m).tasks or ())} tasks"
        size = f" ({windows} windows)" if windows else f" ({examples} questions)" * bool(examples)
        return f"{run.model}, {heading(m)}{size}"


def groups(runs: Sequence[Shown]) -> list[Group]:
    """Accuracies that may be drawn beside each other, the largest groups first."""
    found: list[Group] = []
    for run in runs:
        for m in accuracy_measurements(run.record):
            if m.value is None:
                continue
            for group in found:
                first, other = group.members[0]
                same = first.record.model.sha256 == run.record.model.sha256
                if same and group.key == key_of(m) and not comparison.mismatch(m, other):
                    group.members.append((run, m))
                    break
            else:
                found.append(Group(key_of(m), [(run, m)]))
    return sorted(
        (group for group in found if len(group.members) >= FEWEST),
        key=lambda group: (-len(group.members), _order(group.key), group.name),
    )


def against_bits(runs: Sequence[Shown]) -> Figure:
    """Accuracy against bits per weight."""
    name, title = "bits", "Accuracy against bits per weight"
    says = f"Each point is a run. Left and good is better. {FRONT}"
    rows: list[Row] = []
    kept = []
    for group in groups(runs):
        points = [
            {**_point(group, run, m), "x": significant(run.record.checkpoint.bits_per_weight)}
            for run, m in group.members
        ]
        rows += _with_front(points, group.members[0][1].higher_is_better, cheaper_is_less=True)
        kept.append(Option(group.name, group.label, _words(group.members[0][1])))
    if not kept:
        return Figure(
            name, title, says, lacking=f"Fewer than {FEWEST} runs were measured on the same text."
        )
    return Figure(name, title, says, tuple(rows), (Choice("of", "Measured by", tuple(kept)),))


def against_speed(runs: Sequence[Shown]) -> Figure:
    """Accuracy against the speed of decoding in IREE, on packed weights."""
    name, title = "speed", "Accuracy against decoding speed"
    says = (
        "Decoding of one sequence in IREE on packed weights. Right and good is better. Tokens/s of "
        "two runs were timed at different hours, so a verdict on speed comes from the ratio to the "
        f"dense model alone, timed in turn with it in one process. {FRONT}"
    )
    axes = {
        "tokens_per_s": "Tokens per second (decode, batch 1)",
        SPEEDUP: "Times as fast as the dense model in IREE",
    }
    rows: list[Row] = []
    kept = []
    for group in groups(runs):
        drawn = 0
        for metric in axes:
            points = [
                {**_point(group, run, m), **speed, "on": metric}
                for run, m in group.members
                if (speed := _speed(run, metric))
            ]
            drawn = max(drawn, len(points))
            rows += _with_front(points, group.members[0][1].higher_is_better, cheaper_is_less=False)
        if drawn >= FEWEST:
            kept.append(Option(group.name, group.label, _words(group.members[0][1])))
    if not kept:
        return Figure(
            name,
            title,
            says,
            lacking="No runs were both evaluated and timed in IREE. A recipe with `lower:` and "
            "`bench: {suites: [decode]}` does both.",
        )
    labels = {"tokens_per_s": "tokens/s", SPEEDUP: "times dense"}
    speeds = tuple(Option(key, labels[key], {"x": text}) for key, text in axes.items())
    return Figure(
        name,
        title,
        says,
        tuple(rows),
        (Choice("of", "Measured by", tuple(kept)), Choice("on", "Speed as", speeds)),
    )


def _order(key: Key) -> int:
    """Perplexity first, then the mean of tasks, then the rest."""
    return 0 if key[1] == "perplexity" else 1 if key[0] == AVERAGE else 2


def _words(m: Measurement) -> dict[str, str]:
    _, unit = scale_of(m.metric, m.unit, m.value or 0.0)
    direction = "higher is better" if m.higher_is_better else "lower is better"
    name = "mean of tasks, %" if m.name == AVERAGE else heading(m)
    unit = f", {unit}" if unit not in ("", "%") else ""
    scale = "log" if m.metric in ("perplexity", "kl") else "linear"
    return {"y": f"{name}{unit} ({direction})", "scale": scale}


def _point(group: Group, run: Shown, m: Measurement) -> Row:
    assert m.value is not None
    factor, _ = scale_of(m.metric, m.unit, m.value)
    low, high = (m.interval.low, m.interval.high) if m.interval else (m.value, m.value)
    return {
        "of": group.name,
        "run": run.name,
        "steps": run.steps,
        "pattern": run.pattern,
        "y": significant(factor * m.value),
        "low": significant(factor * low),
        "high": significant(factor * high),
        "said": f"{value_text(m)} {interval_text(m)}".strip(),
        "path": m.path,
        "verdict": run.verdict(m),
        "record": run.path,
    }


def _speed(run: Shown, metric: str) -> Row | None:
    m = run.record.find("decode", metric, IREE)
    if m is None or m.value is None or m.path == "simulated":
        return None
    low, high = (m.interval.low, m.interval.high) if m.interval else (m.value, m.value)
    return {
        "x": significant(m.value),
        "x_low": significant(low),
        "x_high": significant(high),
        "x_said": f"{value_text(m)} {interval_text(m)}".strip(),
        "x_path": m.path,
    }


def _with_front(
    points: Sequence[Row], higher_is_better: bool, *, cheaper_is_less: bool
) -> Iterator[Row]:
    """Every point, and whether no other is at least as good in both and better in one; if so, its
    place on the front, from 1.
    """

    def goodness(point: Row) -> tuple[float, float]:
        x, y = (float(point[axis] or 0.0) for axis in ("x", "y"))
        return (-x if cheaper_is_less else x), (y if higher_is_better else -y)

    good = [goodness(point) for point in points]
    front = sorted(
        {
            (-a if cheaper_is_less else a)
            for a, b in good
            if not any(c >= a and d >= b and (c, d) != (a, b) for c, d in good)
        }
    )
    for point, (a, b) in zip(points, good, strict=True):
        beaten = any(c >= a and d >= b and (c, d) != (a, b) for c, d in good)
        place = None if beaten else str(front.index(-a if cheaper_is_less else a) + 1)
        yield {**point, "front": not beaten, "place": place}
