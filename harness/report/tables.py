"""A paper's table rendered from records: Markdown and HTML to read, CSV to compute with,
LaTeX to cite.

Every accuracy has its interval and a verdict against the dense row of the same table (paired test,
Holm's correction over the table), and what may be said against the paper.
"""

from dataclasses import dataclass

from trinity.harness.recipes.paper import Paper, Table
from trinity.harness.report import compact, html_table, latex, long_csv, markdown, verdicts
from trinity.harness.report.caption import caption
from trinity.harness.report.judged import Cell, Judged
from trinity.harness.terminal.grid import Grid


@dataclass(frozen=True, eq=False)
class Rendered:
    """A table's forms; compact is what is printed."""

    markdown: str
    csv: str
    latex: str
    html: str
    compact: Grid


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
    every = [index for _, found in parts for index in found]
    return Rendered(
        markdown.text(judged, said, parts),
        _csv(judged),
        latex.text(judged, said, every),
        html_table.text(judged, said, parts),
        compact.grid(judged, every, _title(paper, judged, profile_name)),
    )


def _title(paper: Paper, judged: Judged, profile_name: str) -> str:
    model = judged.cells[0].record.model.label
    return f"{paper.name}, {judged.table.title}; profile {profile_name}, model {model}"


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
