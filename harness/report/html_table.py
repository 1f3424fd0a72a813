"""A paper's table as one HTML page: no script, no network, readable in light, dark and print."""

from collections.abc import Iterable, Sequence
from html import escape

from trinity.harness.report import compact, markdown
from trinity.harness.report.judged import Judged, row_name
from trinity.harness.terminal.grid import Column

_STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid; white-space: nowrap; }
tbody tr + tr > * { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
tbody + tbody { border-top: 2px solid; }
tbody th { font-weight: normal; }
.number { text-align: right; white-space: nowrap; }
"""


def text(judged: Judged, said: Sequence[str], parts: Sequence[tuple[str | None, list[int]]]) -> str:
    """The whole page.  said: its caption   parts: the cells of each pattern"""
    every = [index for _, indices in parts for index in indices]
    table = compact.grid(judged, every).without([compact.ROW])
    rows = dict(zip(every, table.rows, strict=True))
    title = escape(judged.table.title)
    details = [detail for index in every for detail in markdown.details(judged, index)]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>\n{_STYLE}</style></head>",
            f"<body>\n<h1>{title}</h1>\n<ul>",
            *(f"<li>{escape(line)}</li>" for line in said),
            "</ul>",
            *_table(table.columns, [[rows[index] for index in indices] for _, indices in parts]),
            "<h2>Intervals and tests</h2>",
            *_table([Column(name) for name in markdown.DETAILS], [details]),
            "<h2>Records</h2>\n<ul>",
            *(_record(judged, index) for index in every),
            "</ul>\n</body>\n</html>\n",
        ]
    )


def _table(columns: Sequence[Column], bodies: Iterable[Sequence[Sequence[str]]]) -> list[str]:
    """Rows in groups; the first cell of a row names it."""
    kinds = [' class="number"' if column.right else "" for column in columns]
    heads = (
        f'<th scope="col"{kind}>{escape(column.name)}</th>'
        for column, kind in zip(columns, kinds, strict=True)
    )
    lines = ['<div class="wide"><table>', f"<thead><tr>{''.join(heads)}</tr></thead>"]
    for rows in bodies:
        lines.append("<tbody>")
        for first, *others in rows:
            cells = (
                f"<td{kind}>{escape(cell)}</td>"
                for cell, kind in zip(others, kinds[1:], strict=True)
            )
            lines.append(f'<tr><th scope="row">{escape(first)}</th>{"".join(cells)}</tr>')
        lines.append("</tbody>")
    return [*lines, "</table></div>"]


def _record(judged: Judged, index: int) -> str:
    cell = judged.cells[index]
    place = escape(cell.record_path)
    link = f'<a href="../../{place}"><code>{place}</code></a>'
    return f"<li>{escape(row_name(cell))}: {link}</li>"
