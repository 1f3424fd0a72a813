"""CUDA kernels, run on the CPU, against the float64 product of the weight they hold."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.lowering.kernels.cuda import emulated
from trinity.lowering.kernels.cuda.launch import launches
from trinity.lowering.kernels.cuda.tiles import Tiles
from trinity.lowering.module.check import relative_error
from trinity.methods.formats import Adapted, CompressedWeight, Quantized, Sparse, format_of

Make = Callable[..., CompressedWeight]
ROWS = (1, 3, 16, 17)  # every entry, full and not
DTYPES = ("float32", "float16")
FORMATS = [
    ((5, 7), "int4 tensor", None, 0),  # one panel, one block, most of both padding
    ((33, 100), "float16", None, 0),
    ((5, 40), "bfloat16", None, 3),
    ((70, 172), "int4 channel asymmetric", None, 0),
    ((70, 300), "int4 group 150", None, 3),  # groups padded, adapter of float16
    ((40, 192), "int4 group 32 asymmetric", None, 17),
    ((33, 256), "int4 group 128", "2:4", 0),
    ((96, 160), "int4 group 32 asymmetric", "2:4", 40),  # scales change within a unit
    ((30, 66), "int4 channel", "1:2", 0),
    ((64, 320), "int4 tensor", "2:4", 64),
    ((30, 96), "int4 group 48", "1:4", 0),
    ((30, 64), "int4 group 16", "4:8", 0),
    ((70, 64), "int4 group 32 asymmetric", "50%", 0),
]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++, which compiles the CUDA sources for this processor")
    return emulated.compiled(tmp_path_factory)


def counts_of(number: int, dtype: str) -> tuple[int, ...]:
    """Half of the rows for each type, the other half for the other, in turn from case to case: so
    every case meets every entry and type, and every entry meets every type.
    """
    return ROWS[(number + DTYPES.index(dtype)) % 2 :: 2]


def worst_error(
    program: Path,
    weight: CompressedWeight,
    dtype: str,
    scale: float = 1.0,
    counts: tuple[int, ...] = ROWS,
) -> float:
    """Largest relative error over every M."""
    tiles = Tiles(format_of(weight))
    stored = tiles.pack(weight)
    dense = weight.dequantize().double()
    errors = []
    for rows in counts:
        x = (torch.randn(rows, weight.shape[1]) * scale).to(getattr(torch, dtype)).float()
        found = emulated.product(program, tiles, stored, x, dtype)
        errors.append(relative_error(found, x.double() @ dense.T))
    return max(errors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(len(FORMATS)))
def test_a_kernel_is_the_float64_product_of_its_weight(
    make_weight: Make, program: Path, number: int, dtype: str
) -> None:
    shape, kind, pattern, rank = FORMATS[number]
    scale_dtype = torch.float32 if "tensor" in kind else torch.float16
    weight = make_weight(shape, kind, pattern, rank, scale_dtype)
    assert worst_error(program, weight, dtype, counts=counts_of(number, dtype)) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_tokens_than_a_block_takes_are_shared_among_blocks(
    make_weight: Make, program: Path, dtype: str
) -> None:
    weight = make_weight((33, 96), "int4 channel asymmetric", "2:4", 3, torch.float16)
    assert worst_error(program, weight, dtype, counts=(2, 64)) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d_in", "kind", "pattern", "rank"),
    [(2624, "int4 channel", None, 0), (4224, "int4 group 32", "2:4", 5)],
)
def test_rings_go_round_on_long_inputs(
    make_weight: Make,
    program: Path,
    d_in: int,
    kind: str,
    pattern: str | None,
    rank: int,
    dtype: str,
) -> None:
    weight = make_weight((9, d_in), kind, pattern, rank, torch.float16)
    assert worst_error(program, weight, dtype, counts=(1, 9)) < 1e-6


ADAPTERS = [
    (16, "int4 channel", "int4 group 24"),
    (64, "int4 group 32", "2:4 int4 channel"),
    (20, "2:4 int4 tensor", "float16"),
    (40, "bfloat16", "bfloat16"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(len(ADAPTERS)))
def test_a_packed_adapter_is_multiplied_packed(
    make_packed_adapter: Make, program: Path, number: int, dtype: str
) -> None:
    rank, high, low = ADAPTERS[number]
    weight = make_packed_adapter((40, 48), rank, "int4 channel", high, low)
    assert worst_error(program, weight, dtype, counts=counts_of(number, dtype)) < 1e-6


def test_scaled_inputs_are_multiplied_and_the_adapter_reads_them_unscaled(
    make_weight: Make, program: Path
) -> None:
    weight = make_weight((40, 48), "int4 tensor", "2:4", 5)
    assert isinstance(weight, Adapted)
    assert isinstance(weight.base, Sparse)
    assert isinstance(weight.base.values, Quantized)
    scaled = replace(weight.base.values, input_scale=torch.rand(48) + 0.5)
    weight = Adapted(replace(weight.base, values=scaled), weight.B, weight.A)
    assert worst_error(program, weight, "float16") < 1e-6


def test_bfloat16_scales_and_inputs_lose_nothing(make_weight: Make, program: Path) -> None:
    weight = make_weight((40, 64), "int4 group 32", None, 0, torch.bfloat16)
    assert worst_error(program, weight, "bfloat16") < 1e-6


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_float32_inputs_of_any_size_keep_their_bits(
    make_weight: Make, program: Path, scale: float
) -> None:
    weight = make_weight((40, 128), "int4 group 64", "2:4", 5)
    assert worst_error(program, weight, "float32", scale) < 1e-6


def test_activations_of_zero_give_zero(make_weight: Make, program: Path) -> None:
    weight = make_weight((40, 64), "int4 channel asymmetric", "2:4", 3)
    tiles = Tiles(format_of(weight))
    for dtype in ("float32", "float16"):
        found = emulated.product(program, tiles, tiles.pack(weight), torch.zeros(3, 64), dtype)
        assert torch.equal(found, torch.zeros(3, 40))


def test_every_token_gets_what_it_gets_alone(make_weight: Make, program: Path) -> None:
    weight = make_weight((40, 64), "int4 group 32", "2:4", 3)
    tiles, x = Tiles(format_of(weight)), torch.randn(40, 64)
    stored = tiles.pack(weight)
    together = emulated.product(program, tiles, stored, x, "float32")
    for row in (0, 9, 39):
        alone = emulated.product(program, tiles, stored, x[row : row + 1], "float32")
        assert relative_error(together[row : row + 1], alone.double()) < 1e-6


def test_only_float16_models_are_multiplied_in_float16(make_weight: Make) -> None:
    tiles = Tiles(format_of(make_weight((40, 64), "int4 group 32", "2:4", 3)))
    for dtype in ("float32", "bfloat16"):
        assert {launch.entry for launch in launches(tiles, 1, dtype)} == {"product_f32_1"}
    assert {launch.entry for launch in launches(tiles, 1, "float16")} == {"product_f16_1"}


@pytest.mark.parametrize(
    ("rows", "tiles_of_eight", "grid"),
    [(1, 1, (3, 1)), (8, 1, (3, 1)), (9, 2, (2, 1)), (17, 4, (2, 1)), (100, 4, (2, 4))],
)
def test_blocks_cover_every_output_and_token(
    make_weight: Make, rows: int, tiles_of_eight: int, grid: tuple[int, int]
) -> None:
    (launch,) = launches(Tiles(format_of(make_weight((70, 64), "int4 channel"))), rows, "float32")
    assert launch.entry == f"product_f32_{tiles_of_eight}"
    assert launch.grid == grid
