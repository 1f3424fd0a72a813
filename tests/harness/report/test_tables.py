import csv
import io
from typing import Any

import pytest

from tests.harness.records.test_record import make_record
from trinity.harness import paper
from trinity.harness.records.measurement import Interval, Measurement
from trinity.harness.report import tables

SLIM = paper.load("slim")
TABLE = SLIM.tables["table1"]


def _average(value: float, low: float, high: float) -> Measurement:
    return Measurement(
        name="average",
        metric="acc",
        value=value,
        unit="fraction",
        higher_is_better=True,
        path="simulated",
        engine="torch",
        interval=Interval(low=low, high=high, method="bootstrap"),
        samples=[0.0, 1.0],
    )


def _cells(**changes: Any) -> list[tables.Cell]:
    rows = {row.name: row for row in TABLE.rows}
    found = make_record(**changes)
    return [
        tables.Cell(rows["dense"], None, found, "v1/a.json"),
        tables.Cell(rows["slim-lora"], "2:4", found, "v1/b.json"),
        tables.Cell(rows["slim-lora"], "50%", found, "v1/c.json"),
    ]


def test_every_cell_traces_to_its_record() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells())
    for name in ("v1/a.json", "v1/b.json", "v1/c.json"):
        assert name in rendered.markdown
        assert name in rendered.csv


def test_rows_of_the_markdown_have_as_many_cells_as_the_head() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells())
    counts = {line.count("|") for line in rendered.markdown.splitlines() if line.startswith("|")}
    assert len(counts) == 1


def test_the_csv_has_a_line_for_every_measurement() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells())
    lines = list(csv.DictReader(io.StringIO(rendered.csv)))
    assert len(lines) == 3 * 2
    assert {line["pattern"] for line in lines} == {"dense", "2:4", "50%"}
    assert next(line for line in lines if line["name"] == "piqa")["value"] == "0.75"


def test_what_was_not_measured_is_a_dash_and_not_zero() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells())
    row = next(line for line in rendered.markdown.splitlines() if line.startswith("| Dense"))
    assert f"| {tables.NOT_MEASURED} |" in row
    assert " 0.0 " not in row


def test_the_caption_says_what_the_model_is_and_what_is_missing() -> None:
    note = "weights dequantized from four bits"
    model = make_record().model.model_copy(update={"note": note})
    rendered = tables.render(SLIM, TABLE, "embedded", _cells(model=model))
    assert note in rendered.markdown
    assert note in rendered.latex
    assert "SparseGPT" in rendered.markdown


def test_latex_escapes_what_latex_reads() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells())
    assert "50\\%" in rendered.latex
    body = rendered.latex.split("\n", 1)[1].replace("\\%", "").replace("}}{%", "")
    assert "%" not in body.replace("!}{%", "")


@pytest.mark.parametrize(
    ("ours", "published", "expected"),
    [
        ((0.50, 0.45, 0.55), 51.15, "reproduced"),
        ((0.50, 0.45, 0.51), 51.15, "differs"),
        ((0.50, 0.45, 0.55), None, "not comparable"),
    ],
)
def test_the_verdict_comes_from_the_interval(
    ours: tuple[float, float, float], published: float | None, expected: str
) -> None:
    assert tables.verdict(_average(*ours), published) == expected


def test_a_published_number_without_ours_is_not_measured() -> None:
    assert tables.verdict(None, 51.15) == "not measured"
