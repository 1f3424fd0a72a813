"""Measurements as tables: accuracy, speed, speed-ups, sizes, and the machine's ceilings apart."""

import re
from collections.abc import Callable, Sequence

from trinity.harness.records.facts import Numbers, Speedup, Text
from trinity.harness.records.measurement import Measurement
from trinity.harness.report.numbers import interval_text, value_text
from trinity.harness.report.verdicts import ACCURACY
from trinity.harness.statistics.comparison import SIZES, SPEEDUP
from trinity.harness.terminal.grid import Column, Grid

CEILING = "ceiling-"
FINGERPRINT = re.compile(r" \([0-9a-f]{12}\)$")  # behind the name of the model that was timed
# Metric -> what it is called beside a name that does not say it.
CALLED = {
    "acc": "",  # the heading says it
    "kl": "KL divergence",
    "top1_agreement": "same top token",
    "flip_rate": "answers flipped",
    "ttft_s": "time to first token",
    "tpot_s": "time per later token",
    "joules_per_token": "energy per decoded token",
    "tokens_per_s": "speed",
    "stored_bytes": "stored",
    "resident_bytes": "memory",
    "peak_bytes": "peak memory",
    "read_bytes_per_s": "reading",
    "matmul_flop_per_s": "products",
    "seconds": "time",
    "bits_per_weight": "size",
}


def grids(found: Sequence[Measurement]) -> list[Grid]:
    """Every measurement in the table of its kind; kinds that nothing was measured of have none."""
    kinds: dict[str, list[Measurement]] = {kind: [] for kind in KINDS}
    for m in found:
        kinds[_kind(m)].append(m)
    return [KINDS[kind](kind, those) for kind, those in kinds.items() if those]


def _kind(m: Measurement) -> str:
    if m.name.startswith(CEILING):
        return "ceiling of this machine"
    if m.metric == SPEEDUP:
        return "speed-up"
    if m.metric in ACCURACY:
        return "accuracy"
    if m.metric in SIZES or m.unit == "bytes":
        return "size"
    return "speed" if m.unit == "s" or m.unit.endswith("/s") else "other"


def _grid(kind: str, found: Sequence[Measurement]) -> Grid:
    columns = [
        Column(kind),
        Column("what", spare=1),
        Column("value", right=True),
        Column("95% interval", right=True),
        Column("engine"),
        Column("path"),
        Column("samples", right=True, spare=2),
    ]
    rows = [
        [
            m.name,
            _called(m),
            value_text(m),
            interval_text(m),
            m.engine,
            m.path,
            str(len(m.samples) or ""),
        ]
        for m in found
    ]
    return Grid("", columns, rows, [note for m in found if (note := _note(m))]).filled()


def _note(m: Measurement) -> str:
    """What a reader must know of a row."""
    if m.value is None:
        return f"{m.name} ({m.engine}): not measured: {m.reason}"
    text = Text.of(m)
    if text.seqlen_bounded_from:
        return (
            f"{m.name}: windows of {text.seqlen} tokens, all that the model reads; the suite's are "
            f"of {text.seqlen_bounded_from}."
        )
    return ""


def _speedups(kind: str, found: Sequence[Measurement]) -> Grid:
    """What each is against: which model, in which engine, by which path."""
    columns = [
        Column(kind),
        Column("value", right=True),
        Column("95% interval", right=True),
        Column("engine"),
        Column("path"),
        Column("against"),
        Column("verdict"),
    ]
    rows = [
        [
            m.name,
            value_text(m),
            interval_text(m),
            m.engine,
            m.path,
            f"{FINGERPRINT.sub('', timed.baseline_model or '')} in "
            f"{timed.baseline_engine or ''} ({timed.baseline_path or ''})",
            timed.verdict or "",
        ]
        for m, timed in ((m, Speedup.of(m)) for m in found)
    ]
    return Grid("", columns, rows)


def _ceilings(kind: str, found: Sequence[Measurement]) -> Grid:
    columns = [Column(kind), Column("best", right=True), Column("instructions")]
    rows = [
        [m.name.removeprefix(CEILING), value_text(m), Numbers.of(m).instructions or ""]
        for m in found
    ]
    return Grid("", columns, rows)


def _called(m: Measurement) -> str:
    """What was measured, unless the name says it."""
    words = CALLED.get(m.metric, m.metric.replace("_", " "))
    return "" if words in m.name or m.name.startswith(m.metric) else words


KINDS: dict[str, Callable[[str, Sequence[Measurement]], Grid]] = {
    "accuracy": _grid,
    "speed": _grid,
    "speed-up": _speedups,
    "size": _grid,
    "other": _grid,
    "ceiling of this machine": _ceilings,
}
