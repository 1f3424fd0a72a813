import builtins
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.harness.records.test_record import make_record
from tests.harness.tracking.test_gating import perplexity
from trinity.harness import cli
from trinity.harness.records import flat, record
from trinity.harness.tracking import queries
from trinity.methods.errors import ConfigError, MachineError


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two records of two measurements each."""
    record.write(make_record(), tmp_path)
    measured = [perplexity(), perplexity().model_copy(update={"name": "c4"})]
    record.write(make_record(measurements=measured, date="2026-01-03"), tmp_path)
    return tmp_path


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package were not installed."""
    real = builtins.__import__

    def importing(wanted: str, *rest: Any) -> Any:
        if wanted == name:
            raise ImportError(name)
        return real(wanted, *rest)

    monkeypatch.setattr(builtins, "__import__", importing)


def test_every_measurement_is_a_row_with_every_column(results: Path) -> None:
    rows = list(flat.rows(results))
    assert len(rows) == 4
    assert all(tuple(sorted(row)) == tuple(sorted(flat.COLUMNS)) for row in rows)
    assert len(flat.COLUMNS) == len(set(flat.COLUMNS))
    accuracy = next(row for row in rows if row["metric"] == "acc")
    assert (accuracy["value"], accuracy["low"], accuracy["samples"]) == (0.75, 0.4, 4)
    assert accuracy["record"] == "v1/M/dense/box-2026-01-02.json"
    assert json.loads(accuracy["samples_json"]) == [1, 1, 1, 0]
    lost = next(row for row in rows if row["value"] is None)
    assert lost["reason"] == "no device"


def test_the_data_frame_is_that_view(results: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="missing: pandas")
    frame = queries.frame(results)
    assert list(frame.columns) == list(flat.COLUMNS)
    assert frame.groupby("metric").size().to_dict() == {
        "acc": 1,
        "perplexity": 2,
        "tokens_per_s": 1,
    }
    assert isinstance(queries.frame(results / "nothing"), pandas.DataFrame)


def test_a_question_in_sql_is_answered_over_all_records(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("duckdb", reason="missing: duckdb (extra `tracking`)")
    sql = "SELECT name, round(value, 3) AS value FROM measurements WHERE metric = 'perplexity'"
    words = ["trinity", "table", "--sql", f"{sql} ORDER BY name", "--out", str(results)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "c4"
    names, rows = queries.ask("SELECT value, date FROM measurements ORDER BY 1 LIMIT 1", results)
    assert (names, rows) == (["value", "date"], [(0.75, "2026-01-02")])
    _, rows = queries.ask("SELECT value FROM measurements WHERE reason = 'no device'", results)
    assert rows == [(None,)]


def test_what_duckdb_refuses_is_said_in_its_words_and_with_the_views_name(results: Path) -> None:
    pytest.importorskip("duckdb", reason="missing: duckdb (extra `tracking`)")
    with pytest.raises(ConfigError, match=r"no_such_column.*The view is `measurements`"):
        queries.ask("SELECT no_such_column FROM measurements", results)
    with pytest.raises(ConfigError, match="holds no records"):
        queries.ask("SELECT 1", results / "nothing")


@pytest.mark.parametrize("name", ["duckdb", "pandas"])
def test_a_package_that_is_not_installed_is_named_with_what_to_install(
    name: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(name, monkeypatch)
    asking = {"duckdb": partial(queries.ask, "SELECT 1"), "pandas": queries.frame}[name]
    with pytest.raises(MachineError, match=r"compression-trinity\[tracking\]"):
        asking(results)


@pytest.mark.parametrize(
    "words", [[], ["slim", "--sql", "SELECT 1"], ["all", "--profile", "paper"]]
)
def test_a_table_is_of_one_paper_of_all_or_of_a_question(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trinity", "table", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "one of them" in capsys.readouterr().err
