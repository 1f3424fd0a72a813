"""A paper's table rendered from records: Markdown to read, CSV to compute with, LaTeX to cite.

Every accuracy cell has its interval and a verdict against the dense row of the same table (paired
test, Holm's correction over the table); the last columns say what may be said against the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trinity.harness.paper import Paper, Table
from trinity.harness.records.compare import SPEEDUP
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.report import long_csv, verdicts
from trinity.harness.report.caption import caption
from trinity.harness.report.judged import Cell, Judged, heading, row_name

NOT_MEASURED = "–"
BREAK = "<br>"  # between a value and what is said of it; a space in LaTeX
TORCH, IREE = "torch", "iree"
PAPER = "Paper"
OPTIONAL = (PAPER, "Decode torch, tok/s", "Decode IREE, tok/s", "Module bits/weight")


@dataclass(frozen=True, eq=False)
class Rendered:
    """A table's three forms."""

    markdown: str
    csv: str
    latex: str


def render(paper: Paper, table: Table, profile_name: str, cells: list[Cell]) -> Rendered:
    """Render the cells of one model.  cells: in the table's order, all of one model."""
    dense = verdicts.dense_row([cell.row for cell in cells])
    outcomes = verdicts.against_dense([cell.record for cell in cells], dense)
    judged = Judged(table, paper.profiles[profile_name], cells, outcomes)
    said = caption(paper, profile_name, judged)
    parts: list[tuple[str | None, list[int]]] = [
        (pattern, [i for i, cell in enumerate(cells) if cell.pattern == pattern])
        for pattern in (None, *table.patterns)
    ]
    parts = [(pattern, found) for pattern, found in parts if found]
    headings, main = _filled_columns(judged, [index for _, found in parts for index in found])
    return Rendered(
        _markdown(judged, said, parts, headings, main),
        _csv(judged),
        _latex(table, said, headings, list(main.values())),
    )


def _filled_columns(judged: Judged, indices: list[int]) -> tuple[list[str], dict[int, list[str]]]:
    """The headings and the rows, without optional columns that no row has anything in."""
    headings = _headings(judged)
    rows = {index: _main_row(judged, index) for index in indices}
    empty = {
        column
        for column, heading in enumerate(headings)
        if heading in OPTIONAL and all(row[column] == NOT_MEASURED for row in rows.values())
    }
    if headings.index(PAPER) in empty:
        empty.add(headings.index(PAPER) + 1)  # what is said of it

    def kept(values: list[str]) -> list[str]:
        return [value for column, value in enumerate(values) if column not in empty]

    return kept(headings), {index: kept(row) for index, row in rows.items()}


def _headings(judged: Judged) -> list[str]:
    names = [heading(m) for m in judged.columns.values()]
    return [
        "Method",
        "Quantization",
        "Pattern",
        "Bits/weight",
        *names,
        PAPER,
        "Against the paper",
        *OPTIONAL[1:],
    ]


def _main_row(judged: Judged, index: int) -> list[str]:
    cell = judged.cells[index]
    record = cell.record
    mean = record.find(verdicts.AVERAGE, "acc")
    paper = judged.against_paper(index, mean)
    return [
        cell.row.label,
        cell.row.quantization,
        cell.pattern or "dense",
        f"{record.checkpoint.bits_per_weight:.2f}",
        *[_accuracy(judged, index, record.find(*key)) for key in judged.columns],
        NOT_MEASURED if paper.value is None else f"{paper.value:.2f}",
        paper.text,
        _speed(record, TORCH),
        _speed(record, IREE),
        f"{record.lowering.bits_per_weight:.2f}" if record.lowering else NOT_MEASURED,
    ]


def _accuracy(judged: Judged, index: int, m: Measurement | None) -> str:
    """Value, interval, spread of seeds; then the verdict against dense, then against the paper."""
    if m is None:
        return NOT_MEASURED
    lines = [_value(m)]
    if not judged.cells[index].row.steps:
        lines.append("baseline")
    else:
        lines.append(verdicts.outcome_text(judged.against_dense(index, m)))
    paper = judged.against_paper(index, m)
    if paper.value is not None and m.name != verdicts.AVERAGE:
        lines.append(f"paper {paper.value:g}: {paper.text}")
    return BREAK.join(filter(None, lines))


def _value(m: Measurement) -> str:
    if m.value is None:
        return NOT_MEASURED
    factor, digits = _scale(m)
    text = f"{factor * m.value:.{digits}f}"
    if m.interval:
        low, high = factor * m.interval.low, factor * m.interval.high
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    if m.seeds:
        text += f" ±{factor * m.seeds.deviation:.{digits}f} ({len(m.seeds.values)} seeds)"
    return text


def _scale(m: Measurement) -> tuple[int, int]:
    """Factor and digits that a metric is shown with."""
    if m.metric in ("acc", "top1_agreement", "flip_rate"):
        return 100, 1
    return (1, 4) if m.metric == "kl" else (1, 2)


def _speed(record: Record, engine: str) -> str:
    m = record.find("decode", "tokens_per_s", engine)
    if m is None or m.value is None:
        return NOT_MEASURED
    text = f"{m.value:.1f}"
    if m.interval:
        text += f" [{m.interval.low:.1f}, {m.interval.high:.1f}]"
    return BREAK.join([f"{text} {m.path}", *_speedup(record.find("decode", SPEEDUP, engine))])


def _speedup(m: Measurement | None) -> list[str]:
    """Against the dense model timed in turn with it; nothing where that was not done."""
    if m is None or m.value is None or m.interval is None:
        return []
    return [
        f"{m.value:.2f}x dense {m.details['baseline_engine']} "
        f"[{m.interval.low:.2f}, {m.interval.high:.2f}], {m.details['verdict']}"
    ]


def _markdown(
    judged: Judged,
    said: list[str],
    parts: list[tuple[str | None, list[int]]],
    headings: list[str],
    rows: Mapping[int, list[str]],
) -> str:
    lines = [f"# {judged.table.title}", "", *[f"- {line}" for line in said], ""]
    for pattern, indices in parts:
        lines += [f"## {pattern or 'Not pruned'}", ""]
        lines += [_bar(headings), _bar(["---"] * len(headings))]
        lines += [_bar(rows[index]) for index in indices]
        lines.append("")
    lines += ["## Records", ""]
    cells = [judged.cells[index] for _, indices in parts for index in indices]
    lines += [
        f"- {row_name(cell)}: [`{cell.record_path}`](../../{cell.record_path})" for cell in cells
    ]
    return "\n".join(lines) + "\n"


def _bar(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


def _csv(judged: Judged) -> str:
    """Long format: a line for every measurement of every run."""
    lines = [
        long_csv.Line(
            (cell.row.label, cell.row.quantization, cell.pattern or "dense"),
            cell.record,
            cell.record_path,
            m,
            judged.against_dense(index, m),
            judged.against_paper(index, m),
        )
        for index, cell in enumerate(judged.cells)
        for m in cell.record.measurements
    ]
    return long_csv.text(lines)


def _latex(table: Table, said: list[str], headings: list[str], rows: list[list[str]]) -> str:
    lines = [
        "% needs booktabs and graphicx",
        "\\begin{table}",
        "\\centering",
        "\\resizebox{\\linewidth}{!}{%",
        f"\\begin{{tabular}}{{lll{'r' * (len(headings) - 3)}}}",
        "\\toprule",
        f"{' & '.join(map(_escaped, headings))} \\\\",
    ]
    pattern = None
    for row in rows:
        if row[2] != pattern:
            pattern = row[2]
            lines.append("\\midrule")
        lines.append(f"{' & '.join(map(_escaped, row))} \\\\")
    lines += [
        "\\bottomrule",
        "\\end{tabular}}",
        f"\\caption{{{_escaped(' '.join(said))}}}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    for plain, escaped in (
        (BREAK, " "),
        ("\\", "\\textbackslash{}"),
        ("&", "\\&"),
        ("%", "\\%"),
        ("_", "\\_"),
        ("#", "\\#"),
        ("`", "'"),
        ("–", "--"),
        ("±", "$\\pm$"),
        ("<", "$<$"),
        ("²", "\\textsuperscript{2}"),
        ("^", "\\^{}"),
    ):
        text = text.replace(plain, escaped)
    return text
