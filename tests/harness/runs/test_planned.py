from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import large_model
from trinity.harness.latency import ceilings
from trinity.harness.latency.ceilings import MATMUL, READ, Ceilings
from trinity.harness.recipes import recipe
from trinity.harness.records import available
from trinity.harness.records.measurement import Measurement
from trinity.harness.runs import planned
from trinity.harness.runs.memory_plan import Peak
from trinity.harness.runs.planned import Planned
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import MachineError


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    made = [
        Measurement(
            name=metric,
            metric=metric,
            value=1e9,
            unit="",
            higher_is_better=True,
            path="reference",
            engine="torch",
            details={"dtype": "float32"},
        )
        for metric in (MATMUL, READ)
    ]
    monkeypatch.setattr(ceilings, "kept", lambda _: Ceilings(tuple(made)))
    config = large_model.sized(blocks=2, hidden=32, inner=48, vocabulary=256)
    large_model.make(tmp_path / "model", config)
    data = {
        "name": "small",
        "model": {"id": str(tmp_path / "model")},
        "compress": {"steps": [{"method": "rtn", "group_size": 16}]},
        "evaluate": {"suites": [{"suite": "perplexity-pydoc", "seqlen": 16, "windows": 2}]},
    }
    asked = recipe.parse(data, "test")
    return planned.of_recipe(asked, StageStore(tmp_path / "store"), Reporter(quiet=True))


def test_a_plan_has_a_row_a_part_and_its_arithmetic_below(found: Planned) -> None:
    grid = found.grid()
    assert grid.title.startswith("small on ")
    assert [row[0] for row in grid.rows] == ["compress", "evaluate"]
    assert all(" GB" in row[2] for row in grid.rows)
    for peak, note in zip(found.peaks, grid.notes, strict=False):
        assert note.startswith(f"{peak.part}: libraries ")
        assert note.count(" + ") == len(peak.held) - 1
    assert "disk" in grid.notes[-1]


def test_as_data_it_has_the_same_numbers(found: Planned) -> None:
    data = found.data()
    assert [part["total"] for part in data["memory"]] == [peak.total for peak in found.peaks]
    assert all(sum(part["held"].values()) == part["total"] for part in data["memory"])
    assert set(data["seconds"]) >= {"compress", "evaluate"}


def test_on_a_gpu_memory_and_disk_are_planned_and_time_is_not(
    found: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(total_memory=16 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    peak = Peak("compress", "solving", {"a block": 3 * 10**9, "hidden states": 10**9})
    there = replace(found, device=torch.device("cuda"), gpu_peaks=[peak])
    data = there.data()
    assert data["seconds"] is None
    assert (data["gpu_memory"][0]["total"], data["gpu_memory_here"]) == (4 * 10**9, 16 * 10**9)
    grid = there.grid()
    arithmetic = "a block 3.00 + hidden states 1.00 = 4.00 GB"
    assert f"compress on the GPU, while solving: {arithmetic}" in grid.notes
    assert any(note.startswith("this GPU gives 16.0 GB") for note in grid.notes)
    assert {row[1] for row in grid.rows} == {"not known"}
    assert "the speed of a GPU is not measured" in grid.notes[-1]


def test_a_plan_that_cannot_fit_is_refused(found: Planned, monkeypatch: pytest.MonkeyPatch) -> None:
    found.check()
    monkeypatch.setattr(available, "total_bytes", lambda: 10**6)
    with pytest.raises(MachineError, match="of memory while"):
        found.check()
