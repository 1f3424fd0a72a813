"""Rows of a table that could not be run: each stands in it with its reason."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from trinity.harness.recipes.paper import Paper, Row, Table, recipe_name
from trinity.harness.report.long_csv import COLUMNS
from trinity.harness.report.tables import Rendered
from trinity.harness.terminal.grid import Column, Grid

NOT_RUN = "not run"


@dataclass(frozen=True)
class Failed:
    """A row that was not run.  reason: one paragraph, as an error says it"""

    row: Row
    pattern: str | None
    reason: str


def beside(rendered: Rendered, label: str, failed: Sequence[Failed]) -> Rendered:
    """A rendered table with the rows that failed; label: the model's"""
    if not failed:
        return rendered
    return Rendered(
        rendered.markdown + "\n" + _markdown(failed),
        rendered.csv + _csv(label, failed, heading=False),
        rendered.latex + "".join(map(_comment, failed)),
        rendered.html.replace("</body>", f"{_html(failed)}</body>"),
        replace(rendered.compact, notes=[*rendered.compact.notes, *map(_line, failed)]),
    )


def alone(
    paper: Paper, table: Table, profile_name: str, label: str, failed: Sequence[Failed]
) -> Rendered:
    """The table of a model of which no row was run."""
    said = (
        f"- {paper.title} ({paper.source}), {table.title}. Profile `{profile_name}`, model "
        f"{label}: no row was run."
    )
    return Rendered(
        f"# {table.title}\n\n{said}\n\n{_markdown(failed)}",
        _csv(label, failed, heading=True),
        "".join(map(_comment, failed)),
        f'<!doctype html>\n<html lang="en">\n<body>\n<h1>{escape(table.title)}</h1>\n'
        f"{_html(failed)}</body>\n</html>\n",
        Grid(
            f"{paper.name}, {table.title}; profile {profile_name}, model {label}: no row was run",
            [Column("Row"), Column("Why")],
            [[recipe_name(f.row, f.pattern), f.reason] for f in failed],
        ),
    )


def _line(failed: Failed) -> str:
    return f"{NOT_RUN}: {recipe_name(failed.row, failed.pattern)}: {failed.reason}"


def _markdown(failed: Sequence[Failed]) -> str:
    lines = ["## Not run", "", "| Method | Quantization | Pattern | Why |", "|---|---|---|---|"]
    for row in failed:
        cells = (row.row.label, row.row.quantization, row.pattern or "dense", row.reason)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _comment(failed: Failed) -> str:
    """A line of LaTeX: a reason of several lines must stay behind the sign."""
    return f"% {NOT_RUN}: {_name(failed)}: {' '.join(failed.reason.split())}\n"


def _html(failed: Sequence[Failed]) -> str:
    lines = [f"<li>{escape(_name(row))}: {escape(row.reason)}</li>" for row in failed]
    return "\n".join(["<h2>Not run</h2>\n<ul>", *lines, "</ul>\n"])


def _csv(label: str, failed: Sequence[Failed], *, heading: bool) -> str:
    """A line a row: its name is 'not run', and the last column but one says why."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", lineterminator="\n")
    if heading:
        writer.writeheader()
    for row in failed:
        writer.writerow(
            {
                "model": label,
                "method": row.row.label,
                "quantization": row.row.quantization,
                "pattern": row.pattern or "dense",
                "name": NOT_RUN,
                "against_paper": row.reason,
            }
        )
    return stream.getvalue()


def _name(failed: Failed) -> str:
    return f"{failed.row.label}, {failed.row.quantization}, {failed.pattern or 'dense'}"
