"""The page itself: a template, a style, a program, the plotting library and the data, in one file.

The library is Vega-Lite, through vl-convert: its Python package carries the browser's code, so that
it is pinned and installed as every other dependency is, and no JavaScript of others lies in this
repository.  Observable Plot would be smaller and draws as well, but it comes from npm alone.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trinity.harness.figures import layers
from trinity.harness.figures.every import figures
from trinity.harness.figures.figure import Figure
from trinity.harness.figures.flips import no_texts
from trinity.harness.figures.shown import Shown
from trinity.harness.html import content, specs
from trinity.harness.html.content import Texts
from trinity.methods.errors import MachineError

EXTRA = "pip install 'compression-trinity[report]'"
LICENCES = "library-licences.txt"
FILES = ("page.html.j2", "style.css", "page.js", "tables.js", LICENCES)


def render(runs: Sequence[Shown], link: str, texts: Texts = no_texts) -> str:
    """The whole file.

    link: what stands before a record's path in links, '' for nothing
    texts: gives the questions of a measurement by their number, for the flipped ones
    """
    check_packages()
    # Here, as in `library`: an optional extra, and reading records needs neither.
    from jinja2 import Environment, StrictUndefined

    found = figures(runs)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(_file("page.html.j2"))
    models = sorted({run.model for run in runs})
    rendered: str = template.render(
        code=code_spans,
        title=f"Trinity report: {', '.join(models)}",
        facts=content.facts(runs),
        overview=content.overview(runs),
        figures=found,
        heat=layers,
        has_layers=any(True for _ in layers.layer_grids(runs)),
        machines=content.machines(runs),
        words=content.WORDS,
        patterns=sorted({run.pattern for run in runs}),
        models=models,
        href=lambda path: href(link, path),
        style=_file("style.css"),
        licences=_file(LICENCES),
        library=library(),
        program=_file("tables.js") + _file("page.js"),
        data=embedded(_data(runs, found, link, texts)),
    )
    return rendered


def check_packages() -> None:
    """MachineError if an optional package of the report is missing."""
    try:
        import jinja2  # noqa: F401  both are optional, and slow to load
        import vl_convert  # noqa: F401  as above
    except ImportError as error:
        msg = f"trinity report needs the package {error.name}, which is missing. Run {EXTRA}."
        raise MachineError(msg) from error


@cache
def library() -> str:
    """The browser's code of Vega, Vega-Lite and their embedding; some seconds to put together."""
    import vl_convert

    converter: Any = vl_convert  # its types ask for a snippet, which is optional
    # Inside a script element a closing tag would end it.
    return str(converter.javascript_bundle()).replace("</script", "<\\/script")


def href(link: str, path: str) -> str:
    """The address of a record."""
    return f"{link}{quote(path)}"


def code_spans(text: str) -> str:
    """Words between backticks as code, the rest as it is."""
    from markupsafe import Markup, escape  # jinja2's own

    parts = [str(escape(part)) for part in text.split("`")]
    marked: str = Markup("".join(f"<code>{x}</code>" if i % 2 else x for i, x in enumerate(parts)))
    return marked


def link_from(out: Path, results: Path) -> str:
    """What leads from the report's folder to the records'."""
    return quote(Path(os.path.relpath(results, out.parent)).as_posix()) + "/"


def embedded(data: Any) -> str:
    """JSON that may stand inside a script element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")


def _data(
    runs: Sequence[Shown], found: dict[str, Figure], link: str, texts: Texts
) -> dict[str, Any]:
    """All that the page's program draws.  Records' paths are numbers of a list: they repeat."""
    records: dict[str, int] = {}

    def number(path: Any) -> int:
        return records.setdefault(str(path), len(records))

    def numbered(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "record": number(row["record"])} if "record" in row else row

    drawn = {
        name: {
            **_columns([numbered(row) for row in figure.rows]),
            "choices": [asdict(choice) for choice in figure.choices],
        }
        for name, figure in found.items()
        if figure.rows
    }
    flipped = [
        {**entry, "record": number(entry["record"]), "dense_record": number(entry["dense_record"])}
        for entry in content.flipped(runs, texts)
    ]
    measured = [[*row[:-1], number(row[-1])] for row in content.measurements(runs)]
    return {
        "specs": specs.specs(),
        "figures": drawn,
        "layers": [asdict(grid) for grid in layers.layer_grids(runs)],
        "metrics": layers.METRICS,
        "flipped": flipped,
        "measurements": measured,
        "link": link,
        "records": list(records),
    }


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows as the names of their values, said once, and the values.

    Words that repeat are numbers of a list.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    words: dict[str, int] = {}
    columns = {
        name: [
            words.setdefault(row[name], len(words)) if isinstance(row[name], str) else None
            for row in rows
            if name in row
        ]
        for name in names
    }
    said = {name for name, column in columns.items() if None not in column}
    values = [
        [words[row[name]] if name in said and name in row else row.get(name) for name in names]
        for row in rows
    ]
    return {"names": names, "said": sorted(said), "words": list(words), "values": values}


def _file(name: str) -> str:
    assert name in FILES
    return resources.files("trinity.harness.html").joinpath(name).read_text(encoding="utf-8")
