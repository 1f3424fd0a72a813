"""A paper's table rendered from records: Markdown to read, CSV to compute with, LaTeX to cite."""

import csv
import io
from dataclasses import dataclass

from trinity.harness.paper import Paper, Profile, Row, Table, published
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record

NOT_MEASURED = "–"
CSV_COLUMNS = (
    *("model", "method", "quantization", "pattern", "bits_per_weight", "name", "metric", "value"),
    *("low", "high", "unit", "samples", "engine", "path", "published", "verdict", "record"),
)
TORCH, IREE = "torch", "iree"


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


def render(paper: Paper, table: Table, profile_name: str, cells: list[Cell]) -> Rendered:
    """Render the cells of one model.  cells: in the table's order, all of one model."""
    profile = paper.profiles[profile_name]
    caption = _caption(paper, table, profile_name, cells)
    parts: list[tuple[str | None, list[Cell]]] = [(None, [c for c in cells if c.pattern is None])]
    parts += [(p, [c for c in cells if c.pattern == p]) for p in table.patterns]
    parts = [(pattern, found) for pattern, found in parts if found]
    main = [_main_row(table, profile, cell) for _, found in parts for cell in found]
    return Rendered(
        _markdown(table, profile, caption, parts),
        _csv(table, profile, cells),
        _latex(table, caption, _headings(cells[0].record), main),
    )


def accuracy_measurements(record: Record) -> list[Measurement]:
    """What says how good the model is: everything that was not timed or weighed."""
    return [m for m in record.measurements if m.metric in ("perplexity", "acc")]


def verdict(measurement: Measurement | None, paper_value: float | None) -> str:
    """What may be said of ours against the paper's number; both in percent."""
    if paper_value is None:
        return "not comparable"
    if measurement is None or measurement.value is None or measurement.interval is None:
        return "not measured"
    low, high = 100 * measurement.interval.low, 100 * measurement.interval.high
    return "reproduced" if low <= paper_value <= high else "differs"


def _caption(paper: Paper, table: Table, profile_name: str, cells: list[Cell]) -> list[str]:
    """Sentences that say what was measured, on what, and what it cannot show."""
    record = cells[0].record
    lines = [
        f"{paper.title} ({paper.source}), {table.title}. Profile `{profile_name}`, model "
        f"{record.model.label}, activations in {record.recipe['model']['dtype']}."
    ]
    if record.model.note:
        lines.append(f"Mind: {record.model.note}.")
    calibration = record.calibration
    if calibration:
        lines.append(
            f"Calibration: {calibration['samples']} windows of {calibration['seqlen']} tokens "
            f"of {calibration['dataset']} ({calibration['rule']} rule, seed {calibration['seed']})."
        )
    lines += [f"{_heading(m)}: {_scope(m)}." for m in accuracy_measurements(record)]
    lines.append(
        "Accuracy is measured in torch: dense as it is (path `reference`), compressed rows on "
        "dequantized weights (`simulated`). Brackets are 95% intervals of the sample at hand; they "
        "hold no spread of calibration seeds."
    )
    lines.append(_timed(record))
    if profile_name != "paper":
        lines.append(
            "Sizes are chosen to fit two processor cores and differ from the paper's. The paper "
            "has no number for this model, so every verdict is `not comparable`: compare rows with "
            "each other."
        )
    lines.append(
        f"Rows of the paper's table that are not implemented yet: {', '.join(table.missing)}."
    )
    lines.append(_made_by(record))
    return lines


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


def _made_by(record: Record) -> str:
    environment = record.environment
    packages = environment["packages"]
    dirty = " with local changes" if environment["dirty"] else ""
    return (
        f"Machine: {environment['cpu']}, {environment['cores']} cores; trinity "
        f"{packages['compression-trinity']}, torch {packages['torch']}, IREE "
        f"{packages['iree-base-compiler']}; commit {(environment['commit'] or 'none')[:12]}"
        f"{dirty}; {record.date}; record schema {record.schema_version}."
    )


def _heading(m: Measurement) -> str:
    """'wikitext2 ppl', 'piqa %', 'mean %'."""
    if m.metric == "perplexity":
        return f"{m.name.removeprefix('perplexity-')} ppl"
    return f"{'mean' if m.name == 'average' else m.name} %"


def _scope(m: Measurement) -> str:
    """How much of a suite was run, in words."""
    if m.name == "average":
        return "unweighted mean of the tasks"
    parts = [f"{len(m.samples)} {'windows' if m.metric == 'perplexity' else 'examples'}"]
    if "seqlen" in m.details:
        parts[0] += f" of {m.details['seqlen']} tokens"
    if "task_version" in m.details:
        parts.append(
            f"task version {m.details['task_version']}, {m.details.get('num_fewshot', 0)}-shot"
        )
    return f"{m.metric}, {', '.join(parts)}"


def _headings(record: Record) -> list[str]:
    names = [_heading(m) for m in accuracy_measurements(record)]
    return [
        "Method",
        "Quantization",
        "Pattern",
        "Bits/weight",
        *names,
        "Paper",
        "Verdict",
        "Decode torch, tok/s",
        "Decode IREE, tok/s",
        "Module bits/weight",
    ]


def _main_row(table: Table, profile: Profile, cell: Cell) -> list[str]:
    record = cell.record
    paper_value = published(
        table, cell.row, cell.pattern, profile.published_names.get(record.model.id)
    )
    mean = record.find("average", "acc")
    return [
        cell.row.label,
        cell.row.quantization,
        cell.pattern or "dense",
        f"{record.checkpoint.bits_per_weight:.2f}",
        *[_value(m) for m in accuracy_measurements(record)],
        NOT_MEASURED if paper_value is None else f"{paper_value:.2f}",
        verdict(mean, paper_value),
        _speed(record.find("decode", "tokens_per_s", TORCH)),
        _speed(record.find("decode", "tokens_per_s", IREE)),
        f"{record.lowering.bits_per_weight:.2f}" if record.lowering else NOT_MEASURED,
    ]


def _value(m: Measurement) -> str:
    if m.value is None:
        return NOT_MEASURED
    factor, digits = (100, 1) if m.metric == "acc" else (1, 2)
    text = f"{factor * m.value:.{digits}f}"
    if m.interval:
        low, high = factor * m.interval.low, factor * m.interval.high
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text


def _speed(m: Measurement | None) -> str:
    if m is None or m.value is None:
        return NOT_MEASURED
    text = f"{m.value:.1f}"
    if m.interval:
        text += f" [{m.interval.low:.1f}, {m.interval.high:.1f}]"
    return f"{text} {m.path}"


def _markdown(
    table: Table,
    profile: Profile,
    caption: list[str],
    parts: list[tuple[str | None, list[Cell]]],
) -> str:
    record = parts[0][1][0].record
    lines = [f"# {table.title}", "", *[f"- {line}" for line in caption], ""]
    for pattern, cells in parts:
        lines += [f"## {pattern or 'Not pruned'}", ""]
        headings = _headings(record)
        lines += [_bar(headings), _bar(["---"] * len(headings))]
        lines += [_bar(_main_row(table, profile, cell)) for cell in cells]
        lines.append("")
    lines += ["## Records", ""]
    lines += [
        f"- {cell.row.label}, {cell.row.quantization}, {cell.pattern or 'dense'}: "
        f"[`{cell.record_path}`](../../{cell.record_path})"
        for _, cells in parts
        for cell in cells
    ]
    return "\n".join(lines) + "\n"


def _bar(values: list[str]) -> str:
    return f"| {' | '.join(values)} |"


def _csv(table: Table, profile: Profile, cells: list[Cell]) -> str:
    """Long format: a line for every measurement of every run."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for cell in cells:
        record = cell.record
        paper_value = published(
            table, cell.row, cell.pattern, profile.published_names.get(record.model.id)
        )
        for m in record.measurements:
            compared = m.name == "average"
            writer.writerow(
                [
                    record.model.label,
                    cell.row.label,
                    cell.row.quantization,
                    cell.pattern or "dense",
                    f"{record.checkpoint.bits_per_weight:.4f}",
                    m.name,
                    m.metric,
                    "" if m.value is None else f"{m.value:.6g}",
                    f"{m.interval.low:.6g}" if m.interval else "",
                    f"{m.interval.high:.6g}" if m.interval else "",
                    m.unit,
                    len(m.samples),
                    m.engine,
                    m.path,
                    paper_value if compared and paper_value is not None else "",
                    verdict(m, paper_value) if compared else "",
                    cell.record_path,
                ]
            )
    return stream.getvalue()


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
        ("\\", "\\textbackslash{}"),
        ("&", "\\&"),
        ("%", "\\%"),
        ("_", "\\_"),
        ("#", "\\#"),
        ("`", "'"),
        ("–", "--"),
        ("²", "\\textsuperscript{2}"),
        ("^", "\\^{}"),
    ):
        text = text.replace(plain, escaped)
    return text
