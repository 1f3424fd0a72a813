import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.harness.figures.results import write_results
from trinity.harness.figures.shown import shown
from trinity.harness.html import page
from trinity.methods.errors import MachineError


class Links(HTMLParser):
    """Every address that a page names, and its tables' cells."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.addresses += [named["href"] or ""] if "href" in named else []
        self.sources += [named["src"] or ""] if "src" in named else []
        self.ids += [named["id"] or ""] if "id" in named else []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("a folder") / "results")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    pytest.importorskip("vl_convert", reason="missing: vl-convert-python (the extra `report`)")
    out = folder.parent / "docs" / "report.html"
    return page.render(shown(folder), page.link_from(out, folder))


def test_the_page_asks_for_nothing_outside_and_its_links_lead_to_records(
    text: str, folder: Path
) -> None:
    found = Links()
    found.feed(text)
    assert found.sources == []
    places = {a for a in found.addresses if not a.startswith("#")}
    assert places
    (folder.parent / "docs").mkdir(exist_ok=True)
    assert all((folder.parent / "docs" / unquote(place)).is_file() for place in places)
    inside = {a.removeprefix("#") for a in found.addresses if a.startswith("#")}
    assert inside <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))


def test_the_browser_is_told_to_load_nothing(text: str) -> None:
    assert "default-src 'none'" in text


def test_the_same_records_give_the_same_page(text: str, folder: Path) -> None:
    out = folder.parent / "docs" / "report.html"
    assert page.render(shown(folder), page.link_from(out, folder)) == text


def test_the_data_are_whole_and_end_no_script(text: str, folder: Path) -> None:
    data = re.search(r'id="data">(.*?)</script>', text)
    assert data
    held = json.loads(data[1])
    assert len(held["records"]) == 4  # three runs, and an older record in the history
    runs = shown(folder)
    assert len(held["measurements"]) == sum(len(run.record.measurements) for run in runs)
    assert json.loads(page.embedded({"a": "</script><!--"})) == {"a": "</script><!--"}
    assert "<" not in page.embedded({"a": "</script><!--"})


def test_rows_packed_as_columns_are_the_same_rows() -> None:
    rows = [{"a": "x", "b": 1.0, "c": None}, {"a": "y", "b": 2.0}, {"a": "x", "c": "z", "d": True}]
    packed = page._columns(rows)
    unpacked = [
        {
            name: packed["words"][value] if name in packed["said"] else value
            for name, value in zip(packed["names"], values, strict=True)
            if value is not None
        }
        for values in packed["values"]
    ]
    assert unpacked == [{k: v for k, v in row.items() if v is not None} for row in rows]


def test_words_of_records_are_escaped() -> None:
    pytest.importorskip("markupsafe", reason="missing: jinja2 (the extra `report`)")
    assert page.code_spans("<b> and `x < y`") == "&lt;b&gt; and <code>x &lt; y</code>"


def test_a_missing_package_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    monkeypatch.setitem(sys.modules, "jinja2", sys.modules.get("jinja2", sys))
    with pytest.raises(MachineError, match=r"vl_convert.*compression-trinity\[report\]"):
        page.check_packages()
