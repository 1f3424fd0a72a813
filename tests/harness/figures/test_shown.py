from pathlib import Path

import pytest

from tests.harness.figures.results import WANDA, one_record, write_results
from trinity.harness.figures.shown import shown
from trinity.harness.records import record
from trinity.methods.errors import ConfigError, RecordError


def test_the_newest_record_of_each_recipe_is_shown_and_the_older_are_its_history(
    tmp_path: Path,
) -> None:
    runs = shown(write_results(tmp_path))
    assert [run.name for run in runs] == ["dense", "rtn", "wanda-2of4"]
    assert runs[0].record.date == "2026-01-03"
    assert [one.date for _, one in runs[0].history] == ["2026-01-02", "2026-01-03"]
    assert all((tmp_path / run.path).is_file() for run in runs)


def test_a_run_is_judged_by_the_dense_run_on_the_same_samples(tmp_path: Path) -> None:
    dense, rtn, wanda = shown(write_results(tmp_path))
    assert wanda.dense is dense
    perplexity = wanda.record.measurements[0]
    assert wanda.outcomes["perplexity-c", "perplexity", "torch"].effect > 2
    # All four comparisons with one dense run are corrected together.
    assert {o.compared for run in (rtn, wanda) for o in run.outcomes.values()} == {4}
    assert dense.verdict(dense.record.measurements[0]) == "baseline"
    assert wanda.verdict(perplexity) in ("worse", "no difference shown")


def test_a_run_on_other_samples_has_no_dense_run_to_be_judged_by(tmp_path: Path) -> None:
    record.write(one_record("dense", []), tmp_path)
    losses, given, right = [2.0, 2.0], [1, 0], [0.0, 1.0]
    record.write(one_record("w", WANDA, losses=losses, given=given, right=right), tmp_path)
    _, run = shown(tmp_path)
    assert run.dense is None
    assert run.outcomes == {}


def test_dense_runs_stay_beside_those_that_are_asked_for(tmp_path: Path) -> None:
    assert [r.name for r in shown(write_results(tmp_path), "wanda*")] == ["dense", "wanda-2of4"]
    with pytest.raises(ConfigError, match=r"matches no recipe.*rtn"):
        shown(tmp_path, "gptq*")


def test_an_empty_folder_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no record"):
        shown(tmp_path)


def test_steps_and_pattern_are_said_in_a_line(tmp_path: Path) -> None:
    dense, rtn, wanda = shown(write_results(tmp_path))
    assert (dense.steps, dense.pattern, dense.is_dense) == ("dense", "no mask", True)
    assert (rtn.steps, rtn.pattern, rtn.is_dense) == ("rtn 4 bits", "no mask", False)
    assert (wanda.steps, wanda.pattern) == ("wanda 2:4", "2:4")
