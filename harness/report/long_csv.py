"""A table's long form: one line for every measurement of every run, to compute with."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

from trinity.harness.records.facts import Speedup
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.report.verdicts import Published
from trinity.harness.statistics.comparison import Outcome

COLUMNS = (
    *("model", "method", "quantization", "pattern", "bits_per_weight", "name", "metric", "value"),
    *("low", "high", "unit", "samples", "engine", "path", "seeds", "seed_mean", "seed_sd"),
    *("effect", "effect_kind", "effect_low", "effect_high", "p_value", "p_holm", "detectable"),
    *("against_dense", "published", "against_paper", "record"),
)


@dataclass(frozen=True, eq=False)
class Line:
    """One measurement.  row: method, quantization, pattern"""

    row: tuple[str, str, str]
    record: Record
    place: str
    measurement: Measurement
    outcome: Outcome | None
    paper: Published


def text(lines: Iterable[Line]) -> str:
    """The file's text; what was not measured or not compared is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in lines:
        record = line.record
        writer.writerow(
            [
                record.model.label,
                *line.row,
                f"{record.checkpoint.bits_per_weight:.4f}",
                *_value(line.measurement),
                *_outcome(line.outcome, line.measurement),
                *_paper(line.paper, line.measurement),
                line.place,
            ]
        )
    return stream.getvalue()


def _value(m: Measurement) -> list[object]:
    return [
        m.name,
        m.metric,
        _digits(m.value),
        _digits(m.interval.low if m.interval else None),
        _digits(m.interval.high if m.interval else None),
        m.unit,
        len(m.samples),
        m.engine,
        m.path,
        len(m.seeds.values) if m.seeds else "",
        _digits(m.seeds.mean if m.seeds else None),
        _digits(m.seeds.deviation if m.seeds else None),
    ]


def _outcome(outcome: Outcome | None, m: Measurement) -> list[object]:
    if outcome is None:
        return [*[""] * 7, Speedup.of(m).verdict or ""]
    interval = outcome.interval
    return [
        _digits(outcome.effect),
        outcome.kind,
        _digits(interval.low if interval else None),
        _digits(interval.high if interval else None),
        _digits(outcome.p_value),
        _digits(outcome.p_adjusted),
        _digits(outcome.detectable),
        f"{outcome.verdict} ({outcome.reason})" if outcome.reason else outcome.verdict,
    ]


def _paper(paper: Published, m: Measurement) -> list[object]:
    if m.metric not in ("acc", "perplexity"):
        return ["", ""]
    return ["" if paper.value is None else paper.value, paper.text]


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
