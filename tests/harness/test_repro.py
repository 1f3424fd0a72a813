"""Which tables a profile fills; the runs themselves are replaced."""

from pathlib import Path

import pytest

from trinity.harness import paper, repro
from trinity.harness.progress import Reporter
from trinity.harness.store import StageStore


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tables that are written, without running a row."""
    written: list[str] = []

    def write_table(definition: paper.Paper, name: str, *_: object) -> repro.Reproduced:
        written.append(name)
        return repro.Reproduced("model", "", ())

    monkeypatch.setattr(repro, "_cells", lambda *_: [])
    monkeypatch.setattr(repro, "write_table", write_table)
    monkeypatch.setattr(repro, "check_needs", lambda profile: None)
    monkeypatch.setattr(repro, "first_at_hand", lambda profile: profile.data[0])
    return written


@pytest.mark.parametrize(
    ("name", "table", "profile", "expected"),
    [
        ("slim", None, "smoke", ["table1"]),
        ("slim", None, "embedded", ["table1"]),
        ("slim", "table9", "embedded", ["table9"]),
        ("optima", None, "smoke", list(paper.load("optima").tables)),
    ],
)
def test_a_profile_fills_its_own_tables_unless_one_is_asked_for(
    filled: list[str],
    tmp_path: Path,
    name: str,
    table: str | None,
    profile: str,
    expected: list[str],
) -> None:
    store = StageStore(tmp_path / "store")
    repro.reproduce(name, table, profile, "*", tmp_path, store, Reporter(quiet=True))
    assert filled == expected


def test_the_paper_profile_fills_all_tables(filled: list[str], tmp_path: Path) -> None:
    store = StageStore(tmp_path / "store")
    repro.reproduce("slim", None, "paper", "*", tmp_path, store, Reporter(quiet=True))
    models = len(paper.load("slim").profiles["paper"].models)
    assert filled == [name for name in paper.load("slim").tables for _ in range(models)]
