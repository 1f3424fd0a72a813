"""A paper's table rendered from records: Markdown to read, CSV to compute with, LaTeX to cite.

Every accuracy cell has its interval and a verdict against the dense row of the same table (paired
test, Holm's correction over the table); the last columns say what may be said against the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trinity.harness.paper import Paper, Profile, Row, Table, published_line
from trinity.harness.records.compare import SPEEDUP, Outcome
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.report import long_csv, verdicts
from trinity.harness.report.verdicts import Key, accuracy_measurements

NOT_MEASURED = "–"
BREAK = "<br>"  # between a value and what is said of it; a space in LaTeX
TORCH, IREE = "torch", "iree"
PAPER = "Paper"
OPTIONAL = (PAPER, "Decode torch, tok/s", "Decode IREE, tok/s", "Module bits/weight")
FIDELITY = {"kl": "KL", "top1_agreement": "same top token %", "flip_rate": "flipped %"}


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a table: which row and pattern, its record, and where that is kept."""

    row: Row
    pattern: str | None
    record: Record
    record_path: str


@dataclass(frozen=True, eq=False)
class Rendered:
    """A table's three forms."""

    markdown: str
    csv: str
    latex: str


@dataclass(frozen=True, eq=False)
class Judged:
    """A table's cells with all that may be said of them."""

    table: Table
    profile: Profile
    cells: list[Cell]
    outcomes: Mapping[Key, Outcome]

    @property
    def columns(self) -> dict[tuple[str, str, str], Measurement]:
        """Every accuracy of any row, in order: rows may have been measured by other suites."""
        found: dict[tuple[str, str, str], Measurement] = {}
        for cell in self.cells:
            for m in accuracy_measurements(cell.record):
                found.setdefault((m.name, m.metric, m.engine), m)
        return found

    def against_dense(self, index: int, m: Measurement) -> Outcome | None:
        """A cell against the dense row's; None for the dense row itself."""
        return self.outcomes.get((index, m.name, m.metric, m.engine))

    def against_paper(self, index: int, m: Measurement | None) -> verdicts.Published:
        """A cell against the paper's number."""
        cell = self.cells[index]
        return verdicts.against_paper(
            m, self.table, cell.row, cell.pattern, self.profile, cell.record
        )


def render(paper: Paper, table: Table, profile_name: str, cells: list[Cell]) -> Rendered:
    """Render the cells of one model.  cells: in the table's order, all of one model."""
    dense = verdicts.dense_row([cell.row for cell in cells])
    outcomes = verdicts.against_dense([cell.record for cell in cells], dense)
    judged = Judged(table, paper.profiles[profile_name], cells, outcomes)
    caption = _caption(paper, profile_name, judged)
    parts: list[tuple[str | None, list[int]]] = [
        (pattern, [i for i, cell in enumerate(cells) if cell.pattern == pattern])
        for pattern in (None, *table.patterns)
    ]
    parts = [(pattern, found) for pattern, found in parts if found]
    headings, main = _filled_columns(judged, [index for _, found in parts for index in found])
    return Rendered(
        _markdown(judged, caption, parts, headings, main),
        _csv(judged),
        _latex(table, caption, headings, list(main.values())),
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


def _caption(paper: Paper, profile_name: str, judged: Judged) -> list[str]:
    """Sentences that say what was measured, on what, and what it cannot show."""
    record, table = judged.cells[0].record, judged.table
    lines = [
        f"{paper.title} ({paper.source}), {table.title}. Profile `{profile_name}`, model "
        f"{record.model.label}, activations in {record.recipe['model']['dtype']}."
    ]
    if record.model.note:
        lines.append(f"Mind: {record.model.note}.")
    if record.calibration:
        lines.append(f"Calibration: {_windows(record.calibration)}.")
    lines += _tuned(judged)
    lines += [f"{_heading(m)}: {_scope(m)}." for m in judged.columns.values()]
    lines.append(
        "Accuracy is measured in torch: dense as it is (path `reference`), compressed rows on "
        "dequantized weights (`simulated`). Brackets are 95% intervals of the sample at hand; they "
        "hold no spread of calibration seeds."
    )
    lines.append(_compared(judged))
    lines.append(_timed(record))
    lines += _published(judged)
    if profile_name != "paper":
        lines.append(
            "Sizes are chosen to fit two processor cores and differ from the paper's, and the "
            "paper has no number for this model: compare rows with each other."
        )
    if table.missing:
        lines.append(
            f"Rows of the paper's table that are not implemented yet: {', '.join(table.missing)}."
        )
    lines += _made_by(judged.cells)
    return lines


def _tuned(judged: Judged) -> list[str]:
    """How the rows that are tuned were tuned, and on which text."""
    lines = []
    for tune in [cell.record.recipe["compress"]["tune"] for cell in judged.cells if cell.row.tune]:
        options = {key: value for key, value in tune.items() if key not in ("method", "data")}
        given = ", ".join(f"{key} {value}" for key, value in options.items()) or "its defaults"
        text = _windows(tune["data"]) if tune["data"] else "the calibration text"
        lines.append(f"Fine-tuned rows: `{tune['method']}` ({given}) on {text}.")
    return list(dict.fromkeys(lines))


def _windows(text: Mapping[str, Any]) -> str:
    return (
        f"{text['samples']} windows of {text['seqlen']} tokens of {text['dataset']} "
        f"({text['rule']} rule, seed {text['seed']})"
    )


def _published(judged: Judged) -> list[str]:
    """Whose the paper's numbers are, and where they were read."""
    table, name = judged.table, judged.profile.published_names.get(judged.cells[0].record.model.id)
    model = name or table.reference
    lines = [table.note] if table.note else []
    if model is None:
        return lines
    names = {verdicts.AVERAGE, *(m.name for m in accuracy_measurements(judged.cells[0].record))}
    found = [
        published_line(table, cell.row, cell.pattern, model, m)
        for cell in judged.cells
        for m in sorted(names)
    ]
    sources = dict.fromkeys(line["source"] for line in found if line)
    if sources:
        lines.append(f"Published numbers are those of {model}, read in: {'; '.join(sources)}.")
    return lines


def _compared(judged: Judged) -> str:
    if not judged.outcomes:
        return "No dense row is in this table, so no cell has a verdict against it."
    tested = next((o.compared for o in judged.outcomes.values() if o.compared), 0)
    return (
        f"Second lines compare with the dense row on the same samples: the ratio of perplexities "
        f"or the difference in points, and `better`, `worse` or `no difference shown` by an exact "
        f"paired test at 5%, Holm-corrected over the {tested} tests of this table. `could show` is "
        f"the least difference that the test would have found four times of five."
    )


def _timed(record: Record) -> str:
    bench = record.recipe.get("bench")
    if not bench:
        return "Nothing was timed."
    return (
        f"Decode: one sequence, {bench['new']} tokens one by one after a prompt of "
        f"{bench['prompt']}, {record.environment['threads']} threads, torch and IREE interleaved, "
        f"median of {bench['repeats']}. Torch runs dequantized floats; IREE runs packed weights by "
        f"the path in the cell, its logits compared with torch's before. Module bits/weight is "
        f"what the module reads: an unstructured mask is stored there as zeros among the codes."
    )


def _made_by(cells: Sequence[Cell]) -> list[str]:
    """The machine and the code; where rows differ in that, which rows were made by which."""
    rows: dict[str, list[str]] = {}
    for cell in cells:
        rows.setdefault(_machine(cell.record), []).append(_row_name(cell))
    if len(rows) == 1:
        return [f"Machine: {machine}" for machine in rows]
    return [
        f"Machine, {len(names)} row{'s' * (len(names) > 1)} ({'; '.join(names)}): {machine}"
        for machine, names in rows.items()
    ]


def _machine(record: Record) -> str:
    environment = record.environment
    packages = environment["packages"]
    dirty = " with local changes" if environment["dirty"] else ""
    return (
        f"{environment['cpu']}, {environment['cores']} cores; trinity "
        f"{packages['compression-trinity']}, torch {packages['torch']}, IREE "
        f"{packages['iree-base-compiler']}; commit {(environment['commit'] or 'none')[:12]}"
        f"{dirty}; {record.date}; record schema {record.schema_version}."
    )


def _heading(m: Measurement) -> str:
    """'wikitext2 ppl', 'piqa %', 'mean %', 'wikitext2 KL'."""
    if m.metric == "perplexity":
        return f"{m.name.removeprefix('perplexity-')} ppl"
    if m.metric in FIDELITY:
        return f"{m.name.removeprefix('fidelity-')} {FIDELITY[m.metric]}"
    return f"{'mean' if m.name == 'average' else m.name} %"


def _scope(m: Measurement) -> str:
    """How much of a suite was run, in words."""
    if m.name == "average":
        return "unweighted mean of the tasks"
    parts = [f"{len(m.samples)} {'windows' if 'windows' in m.details else 'examples'}"]
    if "seqlen" in m.details:
        parts[0] += f" of {m.details['seqlen']} tokens"
    if "task_version" in m.details:
        parts.append(
            f"task version {m.details['task_version']}, {m.details.get('num_fewshot', 0)}-shot"
        )
    return f"{m.metric}, {', '.join(parts)}"


def _headings(judged: Judged) -> list[str]:
    names = [_heading(m) for m in judged.columns.values()]
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
    caption: list[str],
    parts: list[tuple[str | None, list[int]]],
    headings: list[str],
    rows: Mapping[int, list[str]],
) -> str:
    lines = [f"# {judged.table.title}", "", *[f"- {line}" for line in caption], ""]
    for pattern, indices in parts:
        lines += [f"## {pattern or 'Not pruned'}", ""]
        lines += [_bar(headings), _bar(["---"] * len(headings))]
        lines += [_bar(rows[index]) for index in indices]
        lines.append("")
    lines += ["## Records", ""]
    cells = [judged.cells[index] for _, indices in parts for index in indices]
    lines += [
        f"- {_row_name(cell)}: [`{cell.record_path}`](../../{cell.record_path})" for cell in cells
    ]
    return "\n".join(lines) + "\n"


def _row_name(cell: Cell) -> str:
    return f"{cell.row.label}, {cell.row.quantization}, {cell.pattern or 'dense'}"


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


def _latex(table: Table, caption: list[str], headings: list[str], rows: list[list[str]]) -> str:
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
        f"\\caption{{{_escaped(' '.join(caption))}}}",
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
