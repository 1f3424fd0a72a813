"""The committed tables are what the committed records render to."""

import shutil
from pathlib import Path

import pytest

from trinity.harness.commands import render_tables

RESULTS = Path(__file__).parent.parent / "results"
PAPERS = sorted(path.name for path in (RESULTS / "tables").iterdir())


@pytest.mark.parametrize("paper", PAPERS)
def test_tables_are_rendered_from_the_newest_records(paper: str, tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "v1", tmp_path / "v1")
    render_tables(paper, "embedded", tmp_path)
    committed, rendered = (
        {path.name: path.read_text("utf-8") for path in (base / "tables" / paper).iterdir()}
        for base in (RESULTS, tmp_path)
    )
    assert committed.keys() == rendered.keys()
    stale = [name for name in committed if committed[name] != rendered[name]]
    assert not stale, f"run `trinity table {paper} --profile embedded`"
