"""Which formats hold a head and an embedding exactly."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trinity.harness.checkpoints.checkpoint import REST, Checkpoint
from trinity.harness.modules.narrow_head import narrowed, outside_of
from trinity.harness.recipes import recipe
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.lowering.targets import targets
from trinity.methods.formats import Dense, Quantized, format_of


def _eight_bits(largest: int = 127) -> Tensor:
    codes = torch.randint(-largest, largest + 1, (6, 3, 32))
    codes[..., 0] = largest
    scale = (torch.rand(6, 3, 1) + 0.01).half().float()
    return (codes * scale).view(6, 96)


def test_eight_bit_numbers_are_found_with_their_scales() -> None:
    values = _eight_bits()
    found = narrowed(values)
    assert isinstance(found, Quantized)
    assert torch.equal(found.dequantize(), values)
    assert format_of(found).label == "int8 group 32"


def test_a_group_of_zeros_and_a_group_of_one_number_are_exact() -> None:
    values = _eight_bits()
    values[0, :32], values[1, 32:64] = 0, 127 * 0.25
    found = narrowed(values)
    assert isinstance(found, Quantized)
    assert torch.equal(found.dequantize(), values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_half_precision_are_stored_as_such(dtype: torch.dtype) -> None:
    values = torch.randn(6, 40).to(dtype)
    found = narrowed(values.float())
    assert isinstance(found, Dense)
    assert torch.equal(found.values.float(), values.float())


@pytest.mark.parametrize(
    "values",
    [
        torch.randn(6, 64),
        _eight_bits() + 1e-3,
        torch.full((2, 32), torch.nan),
        torch.full((2, 32), 1e-30) * torch.rand(2, 32),
    ],
)
def test_numbers_that_no_narrower_format_holds_stay_as_they_are(values: Tensor) -> None:
    assert narrowed(values) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tied embedding is of bfloat16 numbers."""
    data = {
        "name": "test",
        "model": {"id": "random:tiny-llama"},
        "compress": {"steps": [{"method": "rtn", "bits": 4}]},
        "calibration": {"dataset": "pydoc", "samples": 1, "seqlen": 16, "rule": "concatenated"},
        "evaluate": {"suites": []},
    }
    store = StageStore(tmp_path_factory.mktemp("store"))
    found = Run(recipe.parse(data, "test"), store, Reporter(quiet=True)).compress()
    copy = tmp_path_factory.mktemp("copy") / "checkpoint"
    shutil.copytree(found, copy)
    rest = {name: t.bfloat16().to(t.dtype) for name, t in load_file(copy / REST).items()}
    save_file(rest, copy / REST)
    return copy


def test_head_and_embedding_of_a_checkpoint_are_found_by_name(folder: Path) -> None:
    found = outside_of(Checkpoint.open(folder), targets.get("llvm-cpu"))
    assert [*found.heads, *found.tables] == ["lm_head", "model.embed_tokens"]
    assert format_of(found.heads["lm_head"]).dtype == "bfloat16"


def test_targets_without_kernels_keep_what_the_model_has(folder: Path) -> None:
    found = outside_of(Checkpoint.open(folder), replace(targets.get("rocm"), kernels=None))
    assert (found.heads, found.tables) == ({}, {})
