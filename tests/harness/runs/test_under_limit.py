"""A model larger than the memory that its compression may take: benchmarks/under_limit.py does the
same with 8 GB under 3 GB.
"""

import resource
from pathlib import Path

import pytest
import torch

from benchmarks import large_model
from tests.faults import processes
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.recipes import recipe
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter

ROOM = 100_000_000  # beyond what the process takes before it begins
SIZES = large_model.sized(blocks=24, hidden=512, inner=1408, vocabulary=512)
METHODS = {
    "wanda-2of4-int4": [
        {"method": "wanda", "pattern": "2:4"},
        {"method": "rtn", "bits": 4, "group_size": 64},
    ],
    "gptq": [{"method": "gptq", "bits": 4, "group_size": 64}],
    "slim": [{"method": "slim", "pattern": "2:4"}],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large") / "model"
    size = large_model.make(folder, SIZES)
    assert size > 1.5 * ROOM
    return folder


def _limit() -> None:
    """No more memory of its own than there is room for: pages of files are not counted."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (data,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (data + ROOM, data + ROOM))


def _compress(model: Path, place: Path, method: str) -> None:
    torch.set_num_threads(1)
    data = {
        "name": "large",
        "model": {"id": str(model), "dtype": "bfloat16"},
        "compress": {"steps": METHODS[method], "order": "true-sequential"},
        "calibration": {"dataset": "pydoc", "samples": 2, "seqlen": 32, "rule": "concatenated"},
    }
    run = Run(recipe.parse(data, "test"), StageStore(place / "store"), Reporter(quiet=True))
    run.draw_calibration()  # the text is read, and what reads it is imported
    _limit()
    folder = run.compress()
    (place / "done").write_text(str(folder), encoding="utf-8")


def _hold_all(model: Path) -> None:
    _limit()
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    torch.zeros(size, dtype=torch.uint8)


def test_the_limit_is_one_the_whole_model_does_not_fit(model: Path, tmp_path: Path) -> None:
    said = tmp_path / "said.txt"
    assert processes.done(said, _hold_all, model) != 0
    assert "not enough memory" in said.read_text(encoding="utf-8")


@pytest.mark.parametrize("method", METHODS)
def test_a_model_larger_than_its_memory_is_compressed(
    method: str, model: Path, tmp_path: Path
) -> None:
    said = tmp_path / "said.txt"
    code = processes.done(said, _compress, model, tmp_path, method, seconds=600)
    assert code == 0, said.read_text(encoding="utf-8")
    made = Checkpoint.open(Path((tmp_path / "done").read_text(encoding="utf-8")))
    assert len(made.formats) == 7 * SIZES.num_hidden_layers
