"""A paper's table in LaTeX, to cite: every cell with its interval and verdict."""

import unicodedata

from trinity.harness.records.facts import AVERAGE, Speedup
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.report import verdicts
from trinity.harness.report.compact import IREE, TORCH
from trinity.harness.report.judged import Judged, heading
from trinity.harness.report.numbers import NOTHING, without_value
from trinity.harness.statistics.comparison import SHARES, SPEEDUP

PAPER = "Paper"
OPTIONAL = (PAPER, "Decode torch, tok/s", "Decode IREE, tok/s", "Module bits/weight")


def _filled_columns(judged: Judged, indices: list[int]) -> tuple[list[str], dict[int, list[str]]]:
    """The headings and the rows, without optional columns that no row has anything in."""
    headings = _headings(judged)
    rows = {index: _main_row(judged, index) for index in indices}
    empty = {
        column
        for column, heading in enumerate(headings)
        if heading in OPTIONAL and all(row[column] == NOTHING for row in rows.values())
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
    mean = record.find(AVERAGE, "acc")
    paper = judged.against_paper(index, mean)
    return [
        cell.row.label,
        cell.row.quantization,
        cell.pattern or "dense",
        f"{record.checkpoint.bits_per_weight:.2f}",
        *[_accuracy(judged, index, record.find(*key)) for key in judged.columns],
        NOTHING if paper.value is None else f"{paper.value:.2f}",
        paper.text,
        _speed(record, TORCH),
        _speed(record, IREE),
        f"{record.lowering.bits_per_weight:.2f}" if record.lowering else NOTHING,
    ]


def _accuracy(judged: Judged, index: int, m: Measurement | None) -> str:
    """Value, interval, spread of seeds; then the verdict against dense, then against the paper."""
    if m is None:
        return NOTHING
    lines = [_value(m)]
    if judged.cells[index].row.is_dense:
        lines.append("baseline")
    else:
        lines.append(verdicts.outcome_text(judged.against_dense(index, m)))
    paper = judged.against_paper(index, m)
    if paper.value is not None and m.name != AVERAGE:
        lines.append(f"paper {paper.value:g}: {paper.text}")
    return ", ".join(filter(None, lines))


def _value(m: Measurement) -> str:
    if m.value is None:
        return without_value(m)
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
    if m.metric in SHARES:
        return 100, 1
    return (1, 4) if m.metric == "kl" else (1, 2)


def _speed(record: Record, engine: str) -> str:
    m = record.find("decode", "tokens_per_s", engine)
    if m is None or m.value is None:
        return NOTHING
    text = f"{m.value:.1f}"
    if m.interval:
        text += f" [{m.interval.low:.1f}, {m.interval.high:.1f}]"
    return ", ".join([f"{text} {m.path}", *_speedup(record.find("decode", SPEEDUP, engine))])


def _speedup(m: Measurement | None) -> list[str]:
    """Against the dense model timed in turn with it; nothing where that was not done."""
    if m is None or m.value is None or m.interval is None:
        return []
    timed = Speedup.of(m)
    return [
        f"{m.value:.2f}x dense {timed.baseline_engine} "
        f"[{m.interval.low:.2f}, {m.interval.high:.2f}], {timed.verdict}"
    ]


def text(judged: Judged, said: list[str], indices: list[int]) -> str:
    """The whole table.  said: its caption   indices: of the cells, in order"""
    headings, rows = _filled_columns(judged, indices)
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
    for row in rows.values():
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


_LATEX = {
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "&": "\\&",
    "%": "\\%",
    "$": "\\$",
    "_": "\\_",
    "#": "\\#",
    "~": "\\textasciitilde{}",
    "^": "\\^{}",
    "`": "'",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": "$\\pm$",
    "×": "$\\times$",
    "≤": "$\\le$",
    "≥": "$\\ge$",
    "µ": "$\\mu$",
    "α": "$\\alpha$",
    "²": "\\textsuperscript{2}",
    "…": "\\dots{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
}


def _escaped(text: str) -> str:
    """As pdflatex takes it, with no package for fonts or letters; what it cannot set is '?'."""
    return "".join(_LATEX.get(c) or (c if c < "\x7f" else _letter(c)) for c in text)


def _letter(c: str) -> str:
    """An accented letter, which every LaTeX since 2018 reads; of others none is sure."""
    name = unicodedata.name(c, "")
    return c if name.startswith("LATIN") and c <= "ÿ" else "?"
