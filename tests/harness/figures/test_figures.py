"""The rows of every figure against sums made by hand."""

from pathlib import Path

import pytest

from tests.harness.figures.results import BLOCKS, LINEARS, WANDA, one_record, write_results
from trinity.harness.figures import flips, layers, memory, spread, timing, tradeoff
from trinity.harness.figures.shown import Shown, shown
from trinity.harness.records import record


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    return shown(write_results(tmp_path_factory.mktemp("results")))


def test_the_front_is_every_point_that_no_other_beats(runs: list[Shown]) -> None:
    figure = tradeoff.against_bits(runs)
    points = [
        (float(r["x"] or 0), float(r["y"] or 0), r["front"], r["place"]) for r in figure.chosen()
    ]
    assert len(points) == 3
    for x, y, front, _ in points:  # fewer bits, lower perplexity
        beaten = any(a <= x and b <= y and (a, b) != (x, y) for a, b, *_ in points)
        assert front is not beaten
    places = [place for *_, place in sorted(points) if place]
    assert places == [str(i + 1) for i in range(len(places))]


def test_accuracy_is_drawn_in_percent_with_its_interval(runs: list[Shown]) -> None:
    figure = tradeoff.against_bits(runs)
    task = next(option for option in figure.choices[0].options if "piqa" in option.label)
    dense = next(row for row in figure.chosen(task.value) if row["run"] == "dense")
    assert dense["y"] == pytest.approx(200 / 3, rel=1e-4)
    assert (dense["low"], dense["high"]) == pytest.approx((60, 220 / 3), rel=1e-4)
    assert task.words == {"y": "piqa % (higher is better)", "scale": "linear"}


def test_runs_on_other_windows_are_not_drawn_beside_each_other(tmp_path: Path) -> None:
    write_results(tmp_path)
    for name in ("a", "b", "c"):
        losses = [1.0, 2.0] if name == "a" else [1.0, 2.0, 3.0]
        record.write(one_record(name, WANDA, losses=losses), tmp_path)
    figure = tradeoff.against_bits(shown(tmp_path))
    perplexities = [o for o in figure.choices[0].options if "ppl" in o.label]
    assert [o.label for o in perplexities] == ["M, c ppl (4 windows)"]
    assert {row["run"] for row in figure.chosen(perplexities[0].value)} == {
        "dense", "rtn", "wanda-2of4",
    }  # fmt: skip


def test_speed_is_drawn_as_it_is_and_as_a_ratio(runs: list[Shown]) -> None:
    figure = tradeoff.against_speed(runs)
    of = figure.choices[0].options[0].value
    for kind, wanted in (("tokens_per_s", [10, 20, 40]), ("speedup", [1, 2, 4])):
        assert sorted(float(row["x"] or 0) for row in figure.chosen(of, kind)) == wanted


def test_a_layer_grid_holds_every_block_and_linear(runs: list[Shown]) -> None:
    rtn, wanda = layers.layer_grids(runs)
    assert (rtn.run, wanda.run) == ("rtn", "wanda-2of4")
    assert wanda.linears == LINEARS
    assert wanda.values["relative_error"] == [[0.1, 0.2, 0.3]] * len(LINEARS)
    assert wanda.values["sparsity"] == [[0.5] * BLOCKS] * len(LINEARS)
    assert rtn.shape == wanda.shape


def test_every_repetition_is_drawn_and_quartiles_once(runs: list[Shown]) -> None:
    rows = [row for row in timing.latencies(runs).rows if str(row["of"]).endswith("tpot_s")]
    mine = [row for row in rows if str(row["run"]).startswith("rtn")]
    assert [row["ms"] for row in mine] == [25.0, 50.0, 25.0]
    assert [(row.get("median"), row.get("high")) for row in mine] == [
        (25.0, 37.5), (None, None), (None, None),
    ]  # fmt: skip


def test_a_run_stands_on_the_roofline_where_its_work_and_time_put_it(runs: list[Shown]) -> None:
    rows = timing.roofline(runs).rows
    decode = next(r for r in rows if r.get("run") == "rtn" and r["what"] == "decode")
    # A prompt of 10 tokens takes at least 0.02 s at 1e10: 2e7 operations a token.  A token takes at
    # least 0.0125 s of reading at 1e9: 1.25e7 bytes.  Measured: 0.025 s.
    assert decode["x"] == pytest.approx(2e7 / 1.25e7)
    assert decode["y"] == pytest.approx(2e7 / 0.025 / 1e9)
    assert decode["share"] == pytest.approx(50.0)
    ceiling = [(row["x"], row["y"]) for row in rows if row["kind"] == "ceiling"]
    assert ceiling == [(0.25, 0.25), (10.0, 10.0), (4000.0, 10.0)]


def test_the_parts_of_memory_add_up(runs: list[Shown]) -> None:
    rows = [row for row in memory.memory(runs).rows if str(row["run"]).startswith("rtn")]
    sums = {
        kind: sum(float(r["MiB"] or 0) for r in rows if str(r["of"]).endswith(kind)) * 2**20
        for kind in (memory.STORED, memory.PEAK)
    }
    assert sums == pytest.approx({memory.STORED: 100, memory.PEAK: 300}, rel=1e-4)


def test_seeds_are_drawn_with_their_mean_and_deviation(runs: list[Shown]) -> None:
    rows = spread.seeds(runs).rows
    assert {(r["value"], r["mean"], r["low"], r["high"]) for r in rows} == {
        (9.0, 10.0, 8.6, 11.4), (11.0, 10.0, 8.6, 11.4),
    }  # fmt: skip


def test_the_history_of_a_recipe_goes_from_old_to_new(runs: list[Shown]) -> None:
    figure = spread.history(runs)
    assert [o.label for o in figure.choices[0].options] == ["dense"]
    of = next(o.value for o in figure.choices[1].options if "tpot" in o.label)
    rows = figure.chosen(figure.choices[0].options[0].value, of)
    assert [row["when"] for row in rows] == ["1: 2026-01-02, abc", "2: 2026-01-03, abc"]
    assert [row["value"] for row in rows] == pytest.approx([1000 / 9, 100], rel=1e-4)


def test_what_records_lack_is_said_in_words(tmp_path: Path) -> None:
    bare = one_record("dense", []).model_copy(update={"measurements": []})
    record.write(bare, tmp_path)
    runs = shown(tmp_path)
    made = (
        tradeoff.against_bits(runs), tradeoff.against_speed(runs), timing.latencies(runs),
        timing.roofline(runs), spread.seeds(runs), spread.history(runs),
    )  # fmt: skip
    for figure in made:
        assert figure.lacking.endswith((".", "it begins a history."))
        assert not figure.rows


def test_a_flip_names_both_answers_and_how_sure_each_was(runs: list[Shown]) -> None:
    dense, rtn, wanda = runs
    assert flips.flips(dense) == flips.flips(rtn) == []
    (flip,) = flips.flips(wanda)
    assert (flip.task, flip.example, flip.right) == ("piqa", 0, "dense")
    assert (flip.dense, flip.ours, flip.dense_margin, flip.ours_margin) == (0, 1, 2.0, 0.5)


def test_a_step_of_a_history_is_marked_with_what_changed(tmp_path: Path) -> None:
    for day, speed in enumerate([10, 10.1, 9.9, 10, 20, 20.1, 19.9, 20], start=1):
        made = one_record("dense", [], speed=speed, date=f"2026-01-{day:02}")
        packages = {**made.environment["packages"], "torch": "1" if day < 5 else "2"}
        environment = {**made.environment, "packages": packages}
        record.write(made.model_copy(update={"environment": environment}), tmp_path)
    figure = spread.history(shown(tmp_path))
    of = next(o.value for o in figure.choices[1].options if "speedup" in o.label)
    rows = figure.chosen(figure.choices[0].options[0].value, of)
    assert [row["level"] for row in rows] == [1.0] * 4 + [2.0] * 4
    ((step, order),) = [(row["step"], row["order"]) for row in rows if "step" in row]
    assert order == 4
    assert "torch" in str(step)


def test_questions_are_shown_where_their_text_is_given(runs: list[Shown]) -> None:
    (flip,) = flips.flips(runs[2], lambda _: {0: "What is it?"})
    assert flip.text == "What is it?"
