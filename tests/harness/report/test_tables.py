import csv
import io
from typing import Any

import pytest

from tests.harness.records.test_record import make_record
from trinity.harness.recipes import paper
from trinity.harness.records.measurement import Interval, Measurement, SeedSpread
from trinity.harness.report import tables
from trinity.harness.report.judged import Cell
from trinity.harness.report.numbers import NOTHING

SLIM = paper.load("slim")
TABLE = SLIM.tables["table1"]


def _measured(name: str, samples: list[float], **details: Any) -> Measurement:
    value = sum(samples) / len(samples)
    perplexity = name.startswith("perplexity")
    return Measurement(
        name=name,
        metric="perplexity" if perplexity else "acc",
        value=value,
        unit="1",
        higher_is_better=not perplexity,
        path="simulated",
        engine="torch",
        interval=Interval(low=value - 0.05, high=value + 0.05, method="bootstrap"),
        samples=samples,
        details=details,
    )


def _cells(**changes: Any) -> list[Cell]:
    rows = {row.name: row for row in TABLE.rows}
    found = make_record(**changes)
    return [
        Cell(rows["dense"], None, found, "v1/a.json"),
        Cell(rows["slim-lora"], "2:4", found, "v1/b.json"),
        Cell(rows["slim-lora"], "50%", found, "v1/c.json"),
    ]


def test_every_cell_traces_to_its_record() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells())
    for name in ("v1/a.json", "v1/b.json", "v1/c.json"):
        assert name in rendered.markdown
        assert name in rendered.csv


def test_rows_of_other_commits_are_named_beside_them() -> None:
    cells = _cells()
    assert "Machine: " in tables.render(SLIM, TABLE, "embedded", cells).markdown
    newer = {**cells[2].record.environment, "commit": "feedfacefeedface"}
    record = cells[2].record.model_copy(update={"environment": newer})
    cells[2] = Cell(cells[2].row, cells[2].pattern, record, cells[2].record_path)
    lines = tables.render(SLIM, TABLE, "embedded", cells).markdown.splitlines()
    one, other = (line for line in lines if "Machine, " in line)
    assert "2 rows (Dense" in one
    assert "1 row (SLiM-LoRA" in other
    assert "feedfacefeed" in other
    assert "feedfacefeed" not in one


def _cells_of(text: str, row: str, heading: str) -> dict[str, str]:
    """The cells of a row of the first table under a heading, by the names of the columns."""
    lines = text.partition(f"## {heading}\n")[2].splitlines()
    head = next(line for line in lines if line.startswith("| "))
    found = next(line for line in lines if line.startswith(f"| {row}"))
    names, cells = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in (head, found))
    return dict(zip(names, cells, strict=True))


def _detail(text: str, row: str, measured: str) -> str:
    """The line of a row's measurement in the second table."""
    lines = text.partition("## Intervals and tests")[2].splitlines()
    return next(line for line in lines if line.startswith(f"| {row}") and f"| {measured}" in line)


def test_rows_of_the_markdown_have_as_many_cells_as_the_head() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells())
    parts = rendered.markdown.split("\n## ")[1:]
    counts = [{row.count("|") for row in p.splitlines() if row.startswith("|")} for p in parts]
    assert len([found for found in counts if found]) >= 2
    assert all(len(found) <= 1 for found in counts)


def test_a_cell_of_the_first_table_is_a_number_and_a_word() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells())
    body = rendered.markdown.partition("## Intervals")[0].partition("## Not pruned")[2]
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    assert rows
    assert max(map(len, rows)) < 200
    assert "[" not in "".join(rows)
    assert [column.name for column in rendered.compact.columns][:2] == ["Row", "Method"]


def test_the_csv_has_a_line_for_every_measurement() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells())
    lines = list(csv.DictReader(io.StringIO(rendered.csv)))
    assert len(lines) == 3 * 2
    assert {line["pattern"] for line in lines} == {"dense", "2:4", "50%"}
    assert next(line for line in lines if line["name"] == "piqa")["value"] == "0.75"


def test_what_was_not_measured_is_a_dash_and_not_zero() -> None:
    unknown = _measured("piqa", [1.0, 0.0]).model_copy(update={"value": None, "interval": None})
    rendered = tables.render(SLIM, TABLE, "embedded", _cells(measurements=[unknown]))
    row = next(line for line in rendered.markdown.splitlines() if line.startswith("| Dense"))
    assert f"| {NOTHING}" in row
    assert " 0.0 " not in row


def test_the_caption_says_what_the_model_is_and_what_is_missing() -> None:
    note = "weights dequantized from four bits"
    model = make_record().model.model_copy(update={"note": note})
    table = TABLE.model_copy(update={"missing": ("Another (why it is not there)",)})
    rendered = tables.render(SLIM, table, "embedded", _cells(model=model))
    assert note in rendered.markdown
    assert note in rendered.latex
    assert table.missing[0] in rendered.markdown


def test_latex_escapes_what_latex_reads() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells())
    assert "50\\%" in rendered.latex
    body = rendered.latex.split("\n", 1)[1].replace("\\%", "").replace("}}{%", "")
    assert "%" not in body.replace("!}{%", "")


def _compared(dense: list[Measurement], row: list[Measurement]) -> tables.Rendered:
    rows = {row.name: row for row in TABLE.rows}
    cells = [
        Cell(rows["dense"], None, make_record(measurements=dense), "v1/a.json"),
        Cell(rows["slim-lora"], "2:4", make_record(measurements=row), "v1/b.json"),
    ]
    return tables.render(SLIM, TABLE, "embedded", cells)


def test_every_accuracy_cell_has_an_interval_and_a_verdict_against_dense() -> None:
    right, wrong = [1.0] * 40, [1.0] * 20 + [0.0] * 20
    rendered = _compared(
        [_measured("piqa", right), _measured("arc_easy", right)],
        [_measured("piqa", wrong), _measured("arc_easy", [*right[:-1], 0.0])],
    )
    row = _cells_of(rendered.markdown, "SLiM-LoRA", "2:4")
    assert (row["piqa %"], row["arc_easy %"]) == ("50.0 worse", "97.5 n.s.")
    piqa = _detail(rendered.markdown, "SLiM-LoRA", "piqa %")
    assert "| 50.0 [45.0, 55.0] | -50.0, worse (p < 0.001) |" in piqa
    arc = _detail(rendered.markdown, "SLiM-LoRA", "arc_easy %")
    assert "| 97.5 [92.5, 102.5] | -2.5, no difference shown (could show" in arc
    assert "| baseline |" in _detail(rendered.markdown, "Dense", "piqa %")
    assert "50.0 [45.0, 55.0], -50.0, worse (p $<$ 0.001)" in rendered.latex
    lines = list(csv.DictReader(io.StringIO(rendered.csv)))
    assert [line["against_dense"] for line in lines] == ["", "", "worse", "no difference shown"]
    assert float(lines[2]["p_holm"]) == pytest.approx(2 * float(lines[2]["p_value"]), rel=1e-5)


def test_a_row_measured_otherwise_than_the_dense_row_says_which() -> None:
    losses = [3.0, 3.1, 2.9, 3.3]
    rendered = _compared(
        [_measured("perplexity-wikitext2", losses, seqlen=2048)],
        [_measured("perplexity-wikitext2", losses, seqlen=4096)],
    )
    assert "not comparable (other seqlen)" in rendered.markdown


def test_a_spread_of_seeds_stands_beside_the_interval() -> None:
    seeds = SeedSpread(values=[0.5, 0.52, 0.54], mean=0.52, deviation=0.02)
    found = _measured("piqa", [1.0, 0.0]).model_copy(update={"seeds": seeds})
    assert "50.0 [45.0, 55.0] ±2.0 (3 seeds)" in _compared([found], [found]).markdown


def test_a_table_without_a_dense_row_says_that_nothing_was_compared() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells()[1:])
    assert "No dense row is in this table" in rendered.markdown


def test_only_a_speed_timed_in_turn_with_dense_has_a_word() -> None:
    speed = _measured("decode", [20.0, 21.0]).model_copy(
        update={"metric": "tokens_per_s", "engine": "iree", "path": "compiled"}
    )
    ratio = speed.model_copy(
        update={
            "metric": "speedup",
            "value": 1.5,
            "interval": Interval(low=1.4, high=1.6, method="x"),
            "details": {"verdict": "faster", "baseline_engine": "iree"},
        }
    )
    text = _compared([speed], [speed, ratio]).markdown
    row = _cells_of(text, "SLiM", "2:4")
    assert row["Decode IREE, tok/s"] == "20.50 compiled"
    assert row["Against dense"] == "1.50x faster"
    assert _cells_of(text, "Dense", "Not pruned")["Against dense"] == NOTHING
    detail = _detail(text, "SLiM-LoRA", "decode iree, tok/s (compiled)")
    assert "| 20.50 [20.45, 20.55] | 1.50x [1.40, 1.60] of dense in iree, faster |" in detail


def test_rows_measured_by_other_suites_keep_their_columns_apart() -> None:
    piqa, arc = _measured("piqa", [1.0, 0.0]), _measured("arc_easy", [1.0, 0.0])
    rendered = _compared([piqa, arc], [arc])
    cells = _cells_of(rendered.markdown, "SLiM-LoRA", "2:4")
    assert cells["piqa %"] == NOTHING
    assert cells["arc_easy %"].startswith("50.0 ")


def test_a_reference_model_stands_beside_ours_and_is_not_compared() -> None:
    rendered = tables.render(SLIM, TABLE, "embedded", _cells())
    dense = _cells_of(rendered.markdown, "Dense", "Not pruned")
    assert dense["mean % in the paper"] == "56.6 other model"
    assert "Published numbers are those of LLaMA-2-7B, read in: repository" in rendered.markdown


def test_columns_that_no_row_has_anything_in_are_left_out() -> None:
    plain = TABLE.model_copy(update={"reference": None})
    untimed = _cells(measurements=[_measured("piqa", [1.0, 0.0])], lowering=None)
    rendered = tables.render(SLIM, plain, "embedded", untimed)
    body = rendered.markdown.partition("## Not pruned")[2]
    assert "| Method | Quantization | Pattern | Bits/weight | piqa % |\n" in body
    head = next(x for x in rendered.latex.splitlines() if x.startswith("Method"))
    assert head.endswith("piqa \\% \\\\")


@pytest.mark.parametrize(
    ("reason", "cell"),
    [("exp(812.3), more than a float64 holds", "exp(812.3)"), ("infinite: why", "infinite")],
)
def test_a_perplexity_that_is_no_number_says_what_it_is(reason: str, cell: str) -> None:
    fine = _measured("perplexity-wikitext2", [3.0, 3.1, 3.2])
    lost = fine.model_copy(
        update={"value": None, "interval": None, "reason": reason, "samples": [812.0, 812.3, 812.6]}
    )
    cells = _cells(measurements=[fine])
    record = cells[1].record.model_copy(update={"measurements": [lost]})
    cells[1] = Cell(cells[1].row, cells[1].pattern, record, cells[1].record_path)
    rendered = tables.render(SLIM, TABLE, "embedded", cells)
    assert f"| {cell}" in rendered.markdown
    assert cell in rendered.latex


def test_the_caption_says_what_the_questions_were_chosen_to_show_and_what_they_could() -> None:
    sized = {"resolve": "4 points", "resolution": 0.0391, "discordance": 0.4}
    tasks = [_measured(name, [1.0, 0.0] * 50, **sized) for name in ("piqa", "boolq")]
    of = {"tasks": ["piqa", "boolq"], "questions": 200}
    mean = _measured("average", [0.5, 0.5], **sized, **of)
    text = tables.render(SLIM, TABLE, "embedded", _cells(measurements=[*tasks, mean])).markdown
    said = " ".join(text.split())
    assert said.count("chosen to resolve") == 1  # of the mean, not of each of its tasks
    assert "mean %: 200 questions, chosen to resolve 4 points; they resolve 3.9 points" in said
    assert "if only one of two models is right in 40% of them)" in said
    assert "points could be shown" in said


def test_the_caption_says_what_windows_were_chosen_to_show_in_the_unit_of_each_column() -> None:
    assumed = {"deviation": 0.15, "alike": 0.3}
    losses = _measured(
        "perplexity-wikitext2",
        [3.0, 3.1, 3.2] * 10,
        **{"resolve": "1.1x", "resolution": 1.0931, **assumed},
    )
    text = tables.render(SLIM, TABLE, "embedded", _cells(measurements=[losses])).markdown
    said = " ".join(text.split())
    assert "30 windows, chosen to resolve 1.1x; they resolve 1.093x (80% power at 5%" in said
    assert "a standard deviation of 0.15 nats of loss, and within a cluster correlate with" in said


def test_the_caption_of_sizes_that_were_given_says_nothing_of_a_resolution() -> None:
    text = tables.render(SLIM, TABLE, "embedded", _cells()).markdown
    assert "chosen to resolve" not in text
