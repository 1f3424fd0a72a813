"""CPU kernels against the float64 product of the weight they hold, at every M's tiling."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.lowering.kernels.portable import compiled, for_any_processor, portable
from trinity.lowering.kernels.calls import with_kernels
from trinity.lowering.kernels.cpu.flavour import missing_here
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, TILED_ROWS, Flavour
from trinity.lowering.kernels.cpu.linear import linear_kernels
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.kernels.cpu.product import Tile, shares, tiles
from trinity.lowering.module.check import relative_error
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets
from trinity.lowering.targets.targets import Target
from trinity.methods.formats import (
    Adapted,
    CompressedWeight,
    InputFormat,
    Quantized,
    Sparse,
    format_of,
)

Make = Callable[..., CompressedWeight]
# A full panel, a low tile, tall tiles and what is left of them, workgroups that share the rows.
EVERY_TILING = (1, 3, 11, 35, 64)
# Tiles do not depend on what is unpacked into them: one and many rows show what a format does.
ROWS = (1, 35)
CPU = targets.get("llvm-cpu")
FORMATS = [
    ((5, 7), "bfloat16", None, 3),
    ((70, 172), "int4 tensor", None, 0),
    ((3, 43), "int3 channel asymmetric", None, 2),
    ((4, 30), "int2 group 10", None, 0),
    ((40, 600), "int8 group 300 asymmetric", None, 0),
    ((130, 172), "int4 channel", "2:4", 5),
    ((600, 256), "int4 group 64", "2:4", 60),
    ((30, 1000), "int8 group 500", "3:4", 0),
    ((30, 64), "int4 group 16 asymmetric", "1:2", 0),
    ((30, 64), "int4 group 16 asymmetric", "50%", 3),
    ((70, 64), "int4 group 32", "4:8", 0),
    ((530, 300), "int4 channel", "50%", 0),
    ((40, 600), "int8 group 300 asymmetric", "60%", 0),
    ((70, 172), "nf4 channel", None, 3),
    ((40, 600), "nf4 group 300 e4m3 outer", "2:4", 0),
    ((40, 96), "nf4 group 48", "50%", 0),
    ((70, 64), "e2m1 group 16 e4m3 outer", None, 5),
    ((3, 96), "e2m1 group 32 e8m0", None, 0),
    ((130, 172), "e2m1 tensor", "2:4", 0),
    ((40, 64), "e2m1 group 32", "60%", 0),
    ((40, 300), "e4m3 channel", None, 2),
    ((130, 192), "nf4 group 64 e4m3 outer", None, 5),
    ((70, 160), "e4m3 channel", None, 0),
    ((70, 600), "rows of 4", None, 3),
    ((20, 43), "rows of 3", None, 0),
    ((70, 176), "nested 3 group 16", None, 3),
    ((530, 64), "nested 4 group 32", None, 0),
    ((5, 30), "nested 2 group 10", None, 0),
    ((40, 600), "nested 3 group 300", None, 0),
    ((18, 48), "nested 3 channel", None, 0),
    ((33, 43), "nested 4 channel", None, 2),
    ((40, 64), "e4m3 group 32 e8m0", "2:4", 0),
    ((5, 7), "float16", "50%", 3),
    ((70, 172), "bfloat16", "2:4", 0),
    ((530, 66), "float32", "1:3", 0),
    ((40, 64), "float16", "5%", 0),
    ((64, 64), "float32", "2:4 in 50% by 16x16", 0),
    ((64, 64), "bfloat16", "2:4 in 25% by 32x32", 3),
    ((64, 128), "int4 group 32", "2:4 in 75% by 32x32", 0),
]


def load(
    panels: Panels, flavour: Flavour, target: Target, counts: tuple[int, ...] = ROWS
) -> Loaded:
    """One module with a public function for every M.

    Of few rows AMX has no kernels of its own: they are tested as those of AVX-512.
    """
    own = [m for m in counts if flavour != "amx" or m >= TILED_ROWS]
    kernels = [linear_kernels(f"rows_{m}", panels, m, INSTRUCTIONS[flavour]) for m in own]
    text = with_kernels("module {\n}\n", kernels).replace("func.func private", "func.func")
    return Loaded(compiled(text, flavour, target), target)


def worst_error(module: Loaded, panels: Panels, weight: CompressedWeight, x: torch.Tensor) -> float:
    """Largest relative error over every M of the module, of the first rows of x."""
    stored = [module.put(tensor) for tensor in panels.pack(weight).values()]
    errors = []
    names = [name for name in module.functions if re.fullmatch(r"rows_\d+", name)]
    for rows in (int(name.removeprefix("rows_")) for name in names):
        found = module.fetch(module.call(f"rows_{rows}", [module.put(x[:rows]), *stored]))
        rounded = panels.format.inputs.rounded(x[:rows]) if panels.format.inputs else x[:rows]
        expected = rounded.double() @ weight.dequantize().double().T
        errors.append(relative_error(found, expected))
    return max(errors)


@pytest.fixture(params=["amx", "avx512-vnni", "plain"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    if request.param == "amx" and missing_here("amx"):
        pytest.skip("this processor has no AMX, or Linux does not grant it to this process")
    found: Flavour = request.param
    return found


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), FORMATS)
def test_a_kernel_is_the_float64_product_of_its_weight(
    make_weight: Make,
    flavour: Flavour,
    shape: tuple[int, int],
    kind: str,
    pattern: str | None,
    rank: int,
) -> None:
    weight = make_weight(shape, kind, pattern, rank, torch.float16)
    panels = Panels(format_of(weight))
    x = torch.randn(max(ROWS), shape[1])
    assert worst_error(load(panels, flavour, CPU), panels, weight, x) < 1e-6


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), FORMATS)
def test_kernels_of_few_rows_are_the_same_text_with_and_without_matrix_units(
    make_weight: Make, shape: tuple[int, int], kind: str, pattern: str | None, rank: int
) -> None:
    panels = Panels(format_of(make_weight(shape, kind, pattern, rank, torch.float16)))
    for m in (1, TILED_ROWS - 1):
        texts = [linear_kernels("f", panels, m, INSTRUCTIONS[f]) for f in ("amx", "avx512-vnni")]
        assert texts[0] == texts[1]


def test_scales_that_are_codes_stay_on_vectors_beside_matrix_units(make_weight: Make) -> None:
    """So it runs on any processor, written out where that has no dot products."""
    weight = make_weight((40, 96), "nested 3 group 16", None, 0, torch.float16, 2)
    panels, x = Panels(format_of(weight)), torch.randn(35, 96)
    kernels = linear_kernels("f", panels, 35, INSTRUCTIONS["amx"])
    assert all("tdp" not in text for _, text in kernels.executables)
    assert worst_error(load(panels, "amx", CPU, (35,)), panels, weight, x) < 1e-6


@pytest.mark.parametrize(
    ("shape", "kind", "pattern", "rank", "outliers"),
    [
        ((70, 172), "int4 tensor", None, 3, 2),
        ((600, 256), "int4 group 64", "2:4", 60, 5),
        ((40, 600), "rows of 3", None, 0, 6),
        ((40, 96), "nested 3 group 16", None, 0, 6),
        ((70, 48), "nested 2 group 16", None, 5, 2),
        ((130, 192), "nf4 group 64", None, 0, 1),
        ((5, 70), "float16", "50%", 3, 3),
        ((128, 128), "bfloat16", None, 0, 4),
    ],
)
def test_outliers_are_a_term_of_their_own(
    make_weight: Make,
    flavour: Flavour,
    shape: tuple[int, int],
    kind: str,
    pattern: str | None,
    rank: int,
    outliers: int,
) -> None:
    weight = make_weight(shape, kind, pattern, rank, torch.float16, outliers)
    panels = Panels(format_of(weight))
    x = torch.randn(max(ROWS), shape[1])
    assert worst_error(load(panels, flavour, CPU), panels, weight, x) < 1e-6


@pytest.mark.parametrize("kind", ["int4 group 64", "rows of 4", "nested 3 group 16"])
def test_outliers_meet_the_rounded_inputs(make_weight: Make, flavour: Flavour, kind: str) -> None:
    weight = make_weight((70, 128), kind, None, 0, torch.float16, 3)
    panels = Panels(replace(format_of(weight), inputs=InputFormat("int8", 64)))
    x = torch.randn(max(ROWS), 128)
    assert worst_error(load(panels, flavour, CPU), panels, weight, x) < 1e-6


@pytest.mark.parametrize(
    ("shape", "kind", "pattern", "rank"),
    [
        ((70, 172), "int4 tensor", None, 0),
        ((600, 256), "int4 group 64", "2:4", 60),
        ((70, 172), "bfloat16", "2:4", 0),
    ],
)
def test_every_tiling_of_the_rows_gives_the_product(
    make_weight: Make,
    flavour: Flavour,
    shape: tuple[int, int],
    kind: str,
    pattern: str | None,
    rank: int,
) -> None:
    weight = make_weight(shape, kind, pattern, rank, torch.float16)
    panels, x = Panels(format_of(weight)), torch.randn(max(EVERY_TILING), shape[1])
    assert worst_error(load(panels, flavour, CPU, EVERY_TILING), panels, weight, x) < 1e-6


@pytest.mark.parametrize(
    ("high", "low"),
    [("int4 group 8", "int4 group 24"), ("int3 channel", "float16"), ("float32", "int8 tensor")],
)
def test_a_packed_adapter_is_multiplied_packed(
    make_packed_adapter: Make, flavour: str, high: str, low: str
) -> None:
    weight = make_packed_adapter((40, 48), 16, "int4 channel", high, low)
    panels = Panels(format_of(weight))
    x = torch.randn(max(ROWS), 48)
    assert worst_error(load(panels, flavour, CPU), panels, weight, x) < 1e-6


# Blocks and groups of inputs: several blocks share a scale, a block is a group, the whole token is
# one, the two cross, and floats that have no blocks.
ROUNDED = [
    ((70, 256), "int4 group 64", "2:4", 5, 128, 2),
    ((40, 512), "int4 tensor", None, 0, 128, 1),
    ((40, 600), "int8 channel asymmetric", None, 0, None, 3),
    ((40, 96), "int4 group 48", None, 3, 32, 0),
    ((40, 64), "bfloat16", None, 0, 16, 0),
]


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank", "group", "shared"), ROUNDED)
def test_declared_eight_bit_inputs_are_rounded_as_in_torch(
    make_weight: Make,
    flavour: Flavour,
    shape: tuple[int, int],
    kind: str,
    pattern: str | None,
    rank: int,
    group: int | None,
    shared: int,
) -> None:
    weight = make_weight(shape, kind, pattern, rank, torch.float16)
    panels = Panels(replace(format_of(weight), inputs=InputFormat("int8", group)))
    assert panels.rounded_blocks == shared
    assert torch.equal(panels.unpack(panels.pack(weight)).dequantize(), weight.dequantize())
    x = torch.randn(max(ROWS), shape[1])
    x[:, 5] *= 1000
    x[1] = 0
    x[2, :16] = 0.5  # ties
    assert worst_error(load(panels, flavour, CPU), panels, weight, x) < 1e-6


@pytest.mark.parametrize(
    ("shape", "kind", "rank", "inputs", "outliers"),
    [
        ((40, 96), "int4 group 16", 3, InputFormat(None, turned=96), 0),
        ((20, 80), "nf4 group 16", 0, InputFormat(None, turned=20), 2),
        ((20, 36), "float16", 0, InputFormat(None, turned=36), 0),
        ((40, 64), "nested 3 group 16", 0, InputFormat("int8", 16, turned=64), 0),
    ],
)
def test_turned_inputs_are_multiplied_by_the_matrix_first(
    make_weight: Make,
    flavour: Flavour,
    shape: tuple[int, int],
    kind: str,
    rank: int,
    inputs: InputFormat,
    outliers: int,
) -> None:
    weight = make_weight(shape, kind, None, rank, torch.float16, outliers)
    panels, x = (
        Panels(replace(format_of(weight), inputs=inputs)),
        torch.randn(max(ROWS), shape[1]),
    )
    # Where inputs are rounded, the last bit of a float decides which of two codes one gets.
    most = 2e-2 if inputs.kind else 1e-6
    assert worst_error(load(panels, flavour, CPU), panels, weight, x) < most


def test_a_packed_adapter_reads_rounded_inputs_too(
    make_packed_adapter: Make, flavour: Flavour
) -> None:
    weight = make_packed_adapter((40, 64), 16, "int4 group 32", "int4 group 16", "int4 group 32")
    panels = Panels(replace(format_of(weight), inputs=InputFormat("int8", 32)))
    assert panels.factors["A"].rounded_blocks == 1
    assert (
        worst_error(load(panels, flavour, CPU), panels, weight, torch.randn(max(ROWS), 64)) < 1e-6
    )


def test_scaled_inputs_are_multiplied_and_the_adapter_reads_them_unscaled(
    make_weight: Make, flavour: str
) -> None:
    weight = make_weight((40, 48), "int4 tensor", "2:4", 5)
    assert isinstance(weight, Adapted)
    assert isinstance(weight.base, Sparse)
    assert isinstance(weight.base.values, Quantized)
    scaled = replace(weight.base.values, input_scale=torch.rand(48) + 0.5)
    weight = Adapted(replace(weight.base, values=scaled), weight.B, weight.A)
    panels = Panels(format_of(weight))
    assert torch.equal(panels.unpack(panels.pack(weight)).dequantize(), weight.dequantize())
    x = torch.randn(max(ROWS), 48)
    assert worst_error(load(panels, flavour, CPU), panels, weight, x) < 1e-6


def test_activation_outliers_leave_the_accuracy_of_float32(
    make_weight: Make, flavour: Flavour
) -> None:
    weight = make_weight((64, 512), "int4 group 128")
    panels = Panels(format_of(weight))
    x = torch.randn(max(ROWS), 512)
    x[:, 5] *= 1000
    x[:, 200:300] *= 1e-4
    expected = x.double() @ weight.dequantize().double().T
    float32 = relative_error(x @ weight.dequantize().T, expected)
    assert worst_error(load(panels, flavour, CPU), panels, weight, x) < max(4 * float32, 1e-6)


def test_activations_of_zero_give_zero(make_weight: Make, flavour: Flavour) -> None:
    weight = make_weight((40, 64), "int4 channel asymmetric", "2:4")
    panels = Panels(format_of(weight))
    module = load(panels, flavour, CPU)
    stored = [module.put(tensor) for tensor in panels.pack(weight).values()]
    found = module.fetch(module.call("rows_35", [module.put(torch.zeros(35, 64)), *stored]))
    assert torch.equal(found, torch.zeros(35, 40))


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [("int4 group 16", "2:4"), ("int8 channel asymmetric", "60%"), ("float16", "50%")],
)
def test_the_kernels_for_avx512_run_without_it_when_it_is_written_out(
    make_weight: Make, kind: str, pattern: str
) -> None:
    weight = make_weight((40, 64), kind, pattern, 3)
    panels, anywhere = Panels(format_of(weight)), for_any_processor(CPU)
    text = with_kernels(
        "module {\n}\n", [linear_kernels("rows_5", panels, 5, INSTRUCTIONS["avx512-vnni"])]
    )
    assert "avx512" in text
    text = portable(text).replace("func.func private", "func.func")
    module = Loaded(compile_text(text, anywhere), anywhere)
    assert worst_error(module, panels, weight, torch.randn(5, 64)) < 1e-6


PORTABLE = [("int4 group 16", "2:4"), ("int4 group 16", "50%"), ("float16", "50%")]


@pytest.mark.parametrize(("kind", "pattern"), PORTABLE)
def test_the_portable_kernels_run_without_avx512(
    make_weight: Make, kind: str, pattern: str
) -> None:
    weight = make_weight((40, 64), kind, pattern, 3)
    panels = Panels(format_of(weight))
    module = load(panels, "plain", for_any_processor(CPU))
    assert worst_error(module, panels, weight, torch.randn(max(ROWS), 64)) < 1e-6


@pytest.mark.parametrize(("kind", "pattern"), PORTABLE)
def test_the_portable_kernels_compile_for_arm(make_weight: Make, kind: str, pattern: str) -> None:
    flags = [f for f in CPU.flags if "target-cpu" not in f]
    flags += ["--iree-llvmcpu-target-triple=aarch64-linux-gnu", "--iree-llvmcpu-target-cpu=generic"]
    panels = Panels(format_of(make_weight((40, 64), kind, pattern, 3)))
    text = with_kernels("module {\n}\n", [linear_kernels("f", panels, 1, INSTRUCTIONS["plain"])])
    text = text.replace("func.func private", "func.func")
    assert compile_text(text, replace(CPU, flags=tuple(flags)))


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 9, 16, 31, 128])
@pytest.mark.parametrize("room", [1, 8, 16, 24])
def test_tiles_cover_every_row_once_and_fit_the_registers(rows: int, room: int) -> None:
    for vectors in (1, 2, 4):
        found = tiles(rows, vectors, room)
        covered = [row for tile in found for row in range(tile.start, tile.stop)]
        assert covered == list(range(rows))
        for tile in found:
            assert (tile.stop - tile.start) % tile.rows == 0
            assert vectors % tile.vectors == 0
            assert tile.rows * tile.vectors <= room


def test_rows_are_shared_in_equal_parts_of_few_steps() -> None:
    for steps in range(1, 40):
        parts = shares([Tile(0, 8 * steps, 8, 1)])
        assert steps % parts == 0
        assert steps // parts <= 4
    assert shares([Tile(0, 64, 8, 1), Tile(64, 67, 3, 1)]) == 2
