"""The committed example report is what the records that it names render."""

import json
import re
from pathlib import Path

import pytest

from trinity.harness.figures.shown import shown
from trinity.harness.html import page

# The browser's code of the plotting library, which is as installed, and takes seconds to bundle.
LIBRARY = re.compile(r'(-->\n<script>).*?(</script>\n<script>"use strict")', re.DOTALL)


def test_the_example_is_what_its_records_render(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jinja2", reason="missing: jinja2 (the extra `report`)")
    monkeypatch.setattr(page, "check_packages", lambda: None)
    monkeypatch.setattr(page, "library", lambda: "")
    example = (project_root / "docs" / "examples" / "report.html").read_text(encoding="utf-8")
    data = re.search(r'id="data">(.*?)</script>', example)
    assert data
    for name in json.loads(data[1])["records"]:
        place = tmp_path / "results" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(project_root / "results" / name)
    rendered = page.render(shown(tmp_path / "results"), "../../results/")
    assert LIBRARY.sub(r"\1\2", rendered) == LIBRARY.sub(r"\1\2", example), (
        "run `trinity report --out docs/examples/report.html` and commit it"
    )
