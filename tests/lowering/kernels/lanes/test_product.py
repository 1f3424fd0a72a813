"""The kernels of one source for two makers' GPUs, run on the CPU, against float64."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.lowering.conftest import packed_factors, random_weight
from tests.lowering.kernels.lanes import emulated
from trinity.lowering.kernels import strip_geometry
from trinity.lowering.kernels.lanes.launch import ENTRIES, launches
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.module.check import relative_error
from trinity.methods.formats import Adapted, CompressedWeight, Quantized, format_of

TOLERANCE = 1e-6  # of the largest output
# One of every entry, over one panel and more, padded groups and outputs, units in part.
WEIGHTS = {
    "two": ((40, 224), "int2 group 32", None, 0),
    "three": ((40, 288), "int3 group 48 asymmetric", None, 0),
    "three_short": ((5, 33), "int3 tensor", None, 0),
    "four": ((70, 100), "int4 tensor", None, 3),
    "four_long": ((33, 2624), "int4 channel asymmetric", None, 0),
    "eight": ((40, 96), "int8 group 32 asymmetric", None, 7),
    "float16": ((40, 96), "float16", None, 33),
    "bfloat16": ((40, 100), "bfloat16", None, 0),
    "float32": ((31, 60), "float32", None, 0),
    "four_masked": ((33, 128), "int4 group 16 asymmetric", "2:4", 5),
    "four_masked_long": ((40, 1184), "int4 group 296", "2:4", 0),
    "four_one_two": ((30, 66), "int4 channel", "1:2", 0),
    "eight_masked": ((40, 224), "int8 channel asymmetric", "2:4", 0),
    "float16_masked": ((40, 96), "float16", "2:4", 0),
    "bfloat16_masked": ((40, 100), "bfloat16", "2:4", 0),
    "float32_masked": ((40, 160), "float32", "2:4", 0),
    "four_half": ((70, 296), "int4 group 37", "50%", 3),
    "four_one_four": ((40, 96), "int4 group 32 asymmetric", "1:4", 0),
    "eight_half": ((40, 160), "int8 channel asymmetric", "50%", 0),
    "float16_half": ((40, 160), "float16", "50%", 0),
    "bfloat16_most": ((33, 100), "bfloat16", "70%", 0),
    "float32_one_four": ((40, 96), "float32", "1:4", 0),
    "two_half": ((40, 96), "int2 channel", "50%", 0),
    "nf4": ((70, 128), "nf4 group 64", None, 3),
    "nf4_masked": ((40, 224), "nf4 group 32", "2:4", 0),
    "nf4_half": ((40, 160), "nf4 channel", "50%", 0),
    "mxfp4": ((33, 96), "e2m1 group 32 e8m0", None, 0),
    "nvfp4": ((40, 144), "e2m1 group 16 e4m3 outer", None, 0),
    "fp8": ((40, 100), "e4m3 channel", None, 0),
    "fp8_masked": ((33, 96), "e4m3 group 48", "2:4", 0),
    "fp8_half": ((40, 96), "e4m3 tensor", "50%", 0),
    "four_short_groups": ((33, 112), "int4 group 16 asymmetric", None, 0),
    "row_tables": ((70, 100), "rows of 4", None, 3),
    "row_tables_three": ((33, 288), "rows of 3", None, 0),
    "row_tables_two": ((5, 70), "rows of 2", None, 0),
}


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++, which compiles the sources for this processor")
    return emulated.compiled(tmp_path_factory)


def error(program: Path, weight: CompressedWeight, rows: int) -> float:
    """Relative to the largest output."""
    strips, x = Strips(format_of(weight)), torch.randn(rows, weight.shape[1])
    found = emulated.product(program, strips, strips.pack(weight), x)
    return relative_error(found, x.double() @ weight.dequantize().double().T)


@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_kernel_is_the_float64_product_of_its_weight(program: Path, name: str, rows: int) -> None:
    shape, kind, pattern, rank = WEIGHTS[name]
    weight = random_weight(shape, kind, pattern, rank, torch.float16)
    assert error(program, weight, rows) < TOLERANCE


def test_the_weights_above_ask_for_every_entry() -> None:
    found = {
        launch.entry
        for shape, kind, pattern, rank in WEIGHTS.values()
        for rows in (1, 3)
        for launch in launches(
            Strips(format_of(random_weight(shape, kind, pattern, rank, torch.float16))), rows
        )
    }
    assert found == {entry.name for entry in ENTRIES}


@pytest.mark.parametrize("rows", [1, 2])
def test_scaled_inputs_bfloat16_scales_and_packed_factors(program: Path, rows: int) -> None:
    base = random_weight((40, 96), "int4 tensor")
    assert isinstance(base, Quantized)
    low, high = packed_factors("int4 group 32", (16, 96)), packed_factors("int8 channel", (40, 16))
    scaled = replace(base, input_scale=torch.rand(96) + 0.5)
    bfloat16 = random_weight((40, 96), "int4 group 32", None, 0, torch.bfloat16)
    odd = packed_factors("int4 group 16", (48, 96)), packed_factors("int4 group 16", (40, 48))
    for weight in (scaled, bfloat16, Adapted(scaled, high, low), Adapted(base, odd[1], odd[0])):
        assert error(program, weight, rows) < TOLERANCE


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize(
    ("shape", "kind", "pattern", "rank", "dtype", "count"),
    [
        ((70, 150), "int4 group 50", None, 3, torch.float16, 7),
        ((40, 96), "float16", "50%", 0, torch.bfloat16, 3),
        ((33, 100), "rows of 3", None, 0, torch.float32, 12),
        ((5, 33000), "int4 channel", None, 0, torch.float16, 2),
    ],
)
def test_outliers_are_added(
    program: Path,
    shape: tuple[int, int],
    kind: str,
    pattern: str | None,
    rank: int,
    dtype: torch.dtype,
    count: int,
    rows: int,
) -> None:
    weight = random_weight(shape, kind, pattern, rank, dtype, count)
    assert error(program, weight, rows) < TOLERANCE


def test_a_weight_in_several_tensors_adds_its_own_part_of_the_adapter(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strip_geometry, "LARGEST", 8192)
    weight = random_weight((100, 96), "e4m3 group 32", None, 5, torch.float16, 2)
    assert len(Strips(format_of(weight)).names) > 1
    assert error(program, weight, 3) < TOLERANCE


def test_every_token_gets_the_bits_that_it_gets_among_others(program: Path) -> None:
    weight = random_weight((40, 192), "int3 group 64", None, 0, torch.float16)
    strips, x = Strips(format_of(weight)), torch.randn(17, 192)
    stored = strips.pack(weight)
    together = emulated.product(program, strips, stored, x)
    some = emulated.product(program, strips, stored, x[8:11])
    assert torch.equal(together[8:11], some)
