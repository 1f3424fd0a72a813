"""What the page says of the runs: the table of runs, every measurement, and where it was made."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trinity.harness.figures.flips import flips
from trinity.harness.figures.shown import Key, Shown, key_of
from trinity.harness.records.facts import AVERAGE
from trinity.harness.records.measurement import Measurement
from trinity.harness.report.judged import heading
from trinity.harness.report.measured import CALLED
from trinity.harness.report.numbers import interval_text, scaled, value_text
from trinity.harness.report.verdicts import ACCURACY, outcome_text
from trinity.harness.statistics.comparison import NO_DIFFERENCE, SPEEDUP

Texts = Callable[[Measurement], Mapping[int, str]]
DECODE: tuple[Key, ...] = (
    ("decode", "tokens_per_s", "iree"),
    ("decode", SPEEDUP, "iree"),
)
SHORT: dict[str, str] = {NO_DIFFERENCE: "n.s."}
WORDS = {
    "n.s.": "no difference shown",
    "worse": "significantly worse than the dense model",
    "better": "significantly better than the dense model",
    "baseline": "the dense model itself",
}


@dataclass(frozen=True)
class Cell:
    """One number of a table, with all that a reader needs to trust it.

    sort: what the column is sorted by; None where nothing was measured
    """

    text: str
    sort: float | None = None
    interval: str = ""
    path: str = ""
    verdict: str = ""
    title: str = ""


def cell(run: Shown, m: Measurement | None) -> Cell:
    """A measurement as a cell."""
    if m is None or m.value is None:
        return Cell("–", title=(m.reason or "") if m else "not measured")
    verdict = run.verdict(m)
    verdict = verdict.partition(" (")[0].partition(":")[0]
    said = outcome_text(run.outcomes.get(key_of(m)))
    how = m.interval.method if m.interval else ""
    title = "; ".join(filter(None, [said, f"interval: {how}" if how else "", f"in {m.engine}"]))
    return Cell(
        value_text(m), m.value, interval_text(m), m.path, SHORT.get(verdict, verdict), title
    )


def overview(runs: Sequence[Shown]) -> dict[str, Any]:
    """Columns and rows of the table of runs."""
    metrics: dict[Key, str] = {}
    for run in runs:
        for m in run.record.measurements:
            if m.metric in ACCURACY:
                metrics.setdefault(key_of(m), heading(m))
    order = sorted(metrics, key=lambda key: (key[1] != "perplexity", key[0] != AVERAGE))
    columns = ["Run", "Bits/weight", "Stored", *(metrics[key] for key in order)]
    columns += ["Decode, IREE", "Against dense"]
    return {
        "columns": columns,
        "rows": [
            {
                "run": run,
                "cells": [
                    _bits(run),
                    _stored(run),
                    *(cell(run, run.find(key)) for key in order),
                    *(cell(run, run.find(key)) for key in DECODE),
                ],
            }
            for run in runs
        ],
    }


def measurements(runs: Sequence[Shown]) -> list[list[Any]]:
    """Every measurement of the runs: model, run, what, engine, path, value, what it is sorted by,
    interval, verdict, number of samples, record.
    """
    found = []
    for run in runs:
        for m in run.record.measurements:
            said = outcome_text(run.outcomes.get(key_of(m))) or run.verdict(m)
            what = " ".join(
                filter(None, [m.name, CALLED.get(m.metric, m.metric.replace("_", " "))])
            )
            value = value_text(m) if m.value is not None else f"– {m.reason or ''}".strip()
            found.append(
                [
                    run.model,
                    run.name,
                    what,
                    m.engine,
                    m.path,
                    value,
                    m.value,
                    interval_text(m),
                    said,
                    len(m.samples),
                    run.path,
                ]
            )
    return found


def flipped(runs: Sequence[Shown], texts: Texts) -> list[dict[str, Any]]:
    """Of every run that was compared with a dense one, the questions that only one got right."""
    found = []
    for run in runs:
        those = flips(run, texts)
        if those and run.dense is not None:
            rows = [list(asdict(flip).values()) for flip in those]
            found.append(
                {
                    "run": run.name,
                    "model": run.model,
                    "dense": run.dense.name,
                    "record": run.path,
                    "dense_record": run.dense.path,
                    "flips": rows,
                }
            )
    return found


def facts(runs: Sequence[Shown]) -> list[tuple[str, str]]:
    """What the head of the page says: how much was run, where, and how the tests came out."""
    records = sum(len(run.history) for run in runs)
    dates = sorted({one.date for run in runs for _, one in run.history})
    words = Counter(
        outcome.verdict
        for run in runs
        for outcome in run.outcomes.values()
        if outcome.p_adjusted is not None
    )
    verdicts = ", ".join(f"{count} {word}" for word, count in words.most_common())
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return [
        ("Runs", f"{len(runs)} of {len({run.model for run in runs})} models"),
        ("Records", f"{records}, {when}"),
        ("Machines", ", ".join(sorted({run.machine for run in runs}))),
        ("Paired tests against dense", verdicts or "none: no dense run to compare with"),
    ]


def machines(runs: Sequence[Shown]) -> list[dict[str, str]]:
    """What the numbers were measured on, a row for each set of versions."""
    found: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        e = run.record.environment
        packages = e.get("packages") or {}
        key = (
            f"{e.get('cpu', '')}, {e.get('cores', '?')} cores, {e.get('threads', '?')} threads",
            f"{(e.get('memory_bytes') or 0) / 2**30:.0f} GiB",
            str(e.get("gpu") or "none"),
            ", ".join(f"{name} {packages[name]}" for name in VERSIONS if packages.get(name)),
            f"{str(e.get('commit') or 'unknown')[:12]}{' + local changes' * bool(e.get('dirty'))}",
        )
        found.setdefault(key, []).append(run.name)
    names = ("machine", "memory", "gpu", "versions", "commit")
    return [
        {**dict(zip(names, key, strict=True)), "count": str(len(those)), "runs": ", ".join(those)}
        for key, those in found.items()
    ]


VERSIONS = ("torch", "transformers", "iree-base-compiler", "lm-eval")


def _stored(run: Shown) -> Cell:
    size = float(sum(run.record.checkpoint.stored_bytes.values()))
    return Cell(scaled("stored_bytes", "bytes", size), size, title="counted from the files")


def _bits(run: Shown) -> Cell:
    bits = run.record.checkpoint.bits_per_weight
    return Cell(f"{bits:.2f}", bits, title="all stored bits over the number of weights")
