"""A paper's table in Markdown: what it says, cells of one number and verdict, then the details."""

from collections.abc import Iterator, Sequence

from trinity.harness.records.facts import Speedup
from trinity.harness.records.measurement import Measurement
from trinity.harness.report import compact, verdicts
from trinity.harness.report.judged import Cell, Judged, heading, row_name
from trinity.harness.report.numbers import decimals, interval_text, significant
from trinity.harness.statistics.comparison import SPEEDUP

DETAILS = ("Row", "Measurement", "Value, 95% interval", "Against dense", "Against the paper")


def text(judged: Judged, said: list[str], parts: Sequence[tuple[str | None, list[int]]]) -> str:
    """The whole page.  said: its caption   parts: the cells of each pattern"""
    every = [index for _, indices in parts for index in indices]
    table = compact.grid(judged, every).without([compact.ROW])
    rows = dict(zip(every, table.rows, strict=True))
    lines = [f"# {judged.table.title}", "", *[f"- {line}" for line in said], ""]
    for pattern, indices in parts:
        lines += [f"## {pattern or 'Not pruned'}", ""]
        lines += [_bar([column.name for column in table.columns])]
        lines += [_bar(["---:" if column.right else "---" for column in table.columns])]
        lines += [*(_bar(rows[index]) for index in indices), ""]
    lines += ["## Intervals and tests", "", _bar(DETAILS), _bar(["---"] * len(DETAILS))]
    lines += [_bar(detail) for index in every for detail in details(judged, index)]
    lines += ["", "## Records", ""]
    lines += [_record(judged.cells[index]) for index in every]
    return "\n".join(lines) + "\n"


def details(judged: Judged, index: int) -> Iterator[tuple[str, ...]]:
    """Everything that is known of a row's cells, a line each."""
    cell = judged.cells[index]
    for key in judged.columns:
        m = cell.record.find(*key)
        if m is None:
            continue
        against = verdicts.outcome_text(judged.against_dense(index, m))
        if cell.row.is_dense:
            against = "baseline"
        yield row_name(cell), heading(m), _value(m), against, _paper(judged, index, m)
    for engine in (compact.TORCH, compact.IREE):
        m = cell.record.find("decode", "tokens_per_s", engine)
        if m is None or m.value is None:
            continue
        against = _speedup(cell.record.find("decode", SPEEDUP, engine))
        name = f"decode {engine}, tok/s ({m.path})"
        yield row_name(cell), name, f"{significant(m.value)} {interval_text(m)}", against, ""


def _value(m: Measurement) -> str:
    parts = [compact.value(m)]
    if m.value is not None and m.interval:
        parts.append(interval_text(m))
    if m.seeds:
        spread = compact.value(m.model_copy(update={"value": m.seeds.deviation}))
        parts.append(f"±{spread} ({len(m.seeds.values)} seeds)")
    return " ".join(filter(None, parts))


def _paper(judged: Judged, index: int, m: Measurement) -> str:
    published = judged.against_paper(index, m)
    return "" if published.value is None else f"{published.value:g}: {published.text}"


def _speedup(m: Measurement | None) -> str:
    """Against the dense model timed in turn with it; nothing where that was not done."""
    if m is None or m.value is None or m.interval is None:
        return ""
    places = max(2, decimals(m.value, 2))  # a small share is not 0.00
    bounds = f"[{m.interval.low:.{places}f}, {m.interval.high:.{places}f}]"
    timed = Speedup.of(m)
    return f"{m.value:.{places}f}x {bounds} of dense in {timed.baseline_engine}, {timed.verdict}"


def _record(cell: Cell) -> str:
    return f"- {row_name(cell)}: [`{cell.record_path}`](../../{cell.record_path})"


def _bar(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"
