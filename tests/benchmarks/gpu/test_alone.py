"""The CUDA kernels without IREE, as far as that goes without a GPU: launched on the emulation."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import cuda_kernels
from benchmarks.gpu.first_day import alone
from tests.lowering.kernels.cuda import emulated
from trinity.lowering.kernels.cuda.launch import Launch
from trinity.methods.formats import Grid, WeightFormat

CASE = {
    "name": "kernel 64x128 int4, 3 rows",
    "rows": 3,
    "format": WeightFormat((64, 128), Grid(4, True, (64, 1), "float16")).to_json(),
}


class Emulated:
    """Launches as the driver does, on the processor; results are multiplied by a factor."""

    def __init__(self, program: Path, factor: float) -> None:
        self.program, self.factor = program, factor

    def launch(self, launch: Launch, operands: list[Tensor], stream: int) -> None:
        assert stream == 0
        made = emulated.run(self.program, launch, operands[:-1])
        operands[-1].copy_(made if launch.low else made * self.factor)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++, which compiles the kernels for the processor")
    return emulated.compiled(tmp_path_factory)


def rows_of(program: Path, factor: float, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Of the case, with times that need no GPU."""
    monkeypatch.setattr(alone, "DEVICE", "cpu")
    monkeypatch.setattr(alone, "driver", lambda: Emulated(program, factor))
    times = {"ours_samples_s": [1.0, 1.0, 1.0], "cublas_samples_s": [2.0, 2.0, 2.0]}
    monkeypatch.setattr(cuda_kernels, "timed", lambda *_: {"read_bytes": 1, **times})
    options = type("Options", (), {"repeats": 3})
    torch.manual_seed(0)
    return alone.alone(Path(), CASE, options)


def test_a_right_kernel_is_timed(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, speedup = rows_of(program, 1.0, monkeypatch)
    assert ours["details"]["error"] < cuda_kernels.TOLERANCE
    assert (ours["value"], theirs["value"], speedup["value"]) == (1.0, 2.0, 2.0)
    assert (speedup["interval"]["low"], speedup["interval"]["high"]) == (2.0, 2.0)


def test_a_wrong_kernel_is_not_timed(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = rows_of(program, 1.01, monkeypatch)
    assert row["value"] is None
    assert row["reason"].startswith("wrong: 1.0e-02 of the largest output")
