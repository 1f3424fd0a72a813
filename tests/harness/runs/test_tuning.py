"""harness/runs/tuning.py: counted against numbers that are added up here, and a measured peak."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import large_model
from tests.faults import processes
from trinity.harness.latency import memory
from trinity.harness.recipes import recipe
from trinity.harness.recipes.recipe import Recipe
from trinity.harness.records import available
from trinity.harness.runs import memory_plan, tuning
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter

TEXT = {"dataset": "pydoc", "samples": 6, "seqlen": 32, "rule": "concatenated"}
STEPS = [{"method": "wanda", "pattern": "2:4"}]


def _recipe(tune: dict[str, Any] | None, model: str = "m", dtype: str = "float32") -> Recipe:
    data = {
        "name": "r",
        "model": {"id": model, "dtype": dtype},
        "compress": {"steps": STEPS, **({"tune": tune} if tune else {})},
        "calibration": TEXT,
    }
    return recipe.parse(data, "test")


def test_without_tuning_nothing_is_counted() -> None:
    assert tuning.work(_recipe(None)) is None


def test_beam_tries_every_rate_on_the_first_sequences_and_reads_all_of_them_again() -> None:
    rates = {"learning_rates": [1e-3, 1e-4], "trial": 4, "epochs": 3}
    found = tuning.work(_recipe({"method": "beam", **rates}))
    assert found is not None
    assert found.by_block
    steps = 2 * 4 + 3 * 6
    # Each a forward and a backward; then targets, errors at the start and after each epoch, and
    # what enters the next block.
    assert (found.steps, found.forwards) == (steps, 3 * steps + 6 * (1 + 1 + 3 + 1))


def test_with_one_rate_nothing_is_tried() -> None:
    found = tuning.work(_recipe({"method": "beam", "learning_rates": [1e-4], "epochs": 1}))
    assert found is not None
    assert found.steps == 6


def test_a_whole_model_is_updated_once_a_batch() -> None:
    found = tuning.work(_recipe({"method": "slim-tune", "batch": 4, "epochs": 2}))
    assert found is not None
    assert not found.by_block
    assert (found.steps, found.forwards) == (2 * 2, 3 * 2 * 6)


def test_time_is_work_over_the_rate_and_traffic_over_the_bandwidth() -> None:
    of = tuning.Work(True, seqlen=10, forwards=5, steps=2, samples=3, trained=2)
    assert tuning.seconds(of, 1000, 0, 1e3, 1e9) == pytest.approx(2 * 1000 * 10 * 5 / 1e3)
    only_traffic = tuning.seconds(of, 0, 1000, 1e3, 1e6)
    assert only_traffic == pytest.approx(2 * 1000 * 4 * tuning.STEP_TRAFFIC / 1e6)


def _measure(dtype: str, folder: Path) -> None:
    """Tune in a process that has done nothing else, and write down (moment, planned, peak)."""
    torch.set_num_threads(1)
    beam = {"method": "beam", "learning_rates": [1e-4], "epochs": 1, "mode": "offline"}
    asked = _recipe(beam, str(folder / "model"), dtype)
    run = Run(asked, StageStore(folder / "store"), Reporter(quiet=True))
    run.draw_calibration()
    available.give_back()
    (plan,) = memory_plan.peaks(run, memory.resident_bytes())
    _, peak = memory.peak_during(run.compress)
    (folder / "found.json").write_text(json.dumps([plan.moment, plan.total, peak]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_measured_peak_of_tuning_a_block_is_what_was_planned(
    dtype: str, tmp_path: Path
) -> None:
    config = large_model.sized(blocks=2, hidden=1024, inner=2816, vocabulary=512)
    large_model.make(tmp_path / "model", config)
    said = tmp_path / "said.txt"
    code = processes.done(said, _measure, dtype, tmp_path, seconds=600)
    assert code == 0, said.read_text(encoding="utf-8")
    moment, planned, peak = json.loads((tmp_path / "found.json").read_text())
    if peak is None:
        pytest.skip("this system cannot reset a process's peak")
    assert moment == "tuning a block"
    assert peak == pytest.approx(planned, rel=memory_plan.WITHIN)
