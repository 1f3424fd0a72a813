"""Products on matrix units against the float64 product of the weight they hold."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.lowering.kernels.portable import compiled, for_any_processor, portable
from trinity.lowering.kernels.calls import with_kernels
from trinity.lowering.kernels.cpu.flavour import missing_here
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, TILED_ROWS, for_rows
from trinity.lowering.kernels.cpu.linear import NARROW, linear_kernels
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.module.check import relative_error
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets
from trinity.methods.formats import CompressedWeight, Dense, InputFormat, format_of

Make = Callable[..., CompressedWeight]
# One tile, tiles of unequal and equal height, workgroups that share the rows, the last with fewer.
ROWS = (6, 17, 64, 67, 128)
needs_amx = pytest.mark.skipif(
    missing_here("amx") is not None,
    reason="this processor has no AMX, or Linux does not grant it to this process",
)
CPU = targets.get("llvm-cpu")
AMX = INSTRUCTIONS["amx"]


def text_of(panels: Panels, rows: tuple[int, ...]) -> str:
    """A module with a public function for every M."""
    kernels = [linear_kernels(f"rows_{m}", panels, m, AMX) for m in rows]
    text = with_kernels("module {\n}\n", kernels).replace("func.func private", "func.func")
    assert "llvm.x86.tdpb" in text
    return text


def worst_error(weight: CompressedWeight, inputs: InputFormat | None = None) -> float:
    """Largest relative error over every M."""
    panels = Panels(replace(format_of(weight), inputs=inputs))
    module = Loaded(compile_text(text_of(panels, ROWS), CPU), CPU)
    return error_of(module, panels, weight, ROWS)


def written_out_error(weight: CompressedWeight, inputs: InputFormat | None, rows: int) -> float:
    """Relative error of a kernel whose instructions are written out for any processor."""
    panels = Panels(replace(format_of(weight), inputs=inputs))
    anywhere = for_any_processor(CPU)
    module = Loaded(compile_text(portable(text_of(panels, (rows,))), anywhere), anywhere)
    return error_of(module, panels, weight, (rows,))


def error_of(
    module: Loaded, panels: Panels, weight: CompressedWeight, rows: tuple[int, ...]
) -> float:
    """Largest relative error over every M of a module."""
    stored = [module.put(tensor) for tensor in panels.pack(weight).values()]
    inputs = panels.format.inputs
    x = torch.randn(max(rows), weight.shape[1]) + 0.5
    x[1] = 0
    errors = []
    for m in rows:
        found = module.fetch(module.call(f"rows_{m}", [module.put(x[:m]), *stored]))
        rounded = inputs.rounded(x[:m]) if inputs else x[:m]
        expected = rounded.double() @ weight.dequantize().double().T
        errors.append(relative_error(found, expected))
    return max(errors)


# On every processor.  Codes: one step of a block and several, tiles of unequal height, a block of
# fewer inputs than a row of a tile holds, codes that do not fit a signed byte, one digit.
# Floats: one piece of a weight and two, padded inputs, one tile of rows and two; three pieces
# below.
@pytest.mark.parametrize(
    ("shape", "kind", "pattern", "rank", "inputs", "rows"),
    [
        ((40, 64), "int4 group 16", "2:4", 3, None, 6),
        ((10, 172), "int4 tensor", None, 0, None, 17),
        ((20, 128), "int3 group 64 asymmetric", None, 0, None, 6),
        ((20, 160), "int8 channel asymmetric", "1:2", 0, None, 17),
        ((20, 128), "int8 channel", None, 0, InputFormat("int8", None), 6),
        ((80, 96), "float16", None, 0, None, 17),
        ((66, 100), "float16", "2:4", 0, None, 6),
        ((70, 70), "bfloat16", "50%", 0, None, 17),
    ],
)
def test_a_product_in_tiles_is_the_float64_product_where_amx_is_written_out(
    make_weight: Make,
    shape: tuple[int, int],
    kind: str,
    pattern: str | None,
    rank: int,
    inputs: InputFormat | None,
    rows: int,
) -> None:
    weight = make_weight(shape, kind, pattern, rank, torch.float16)
    assert written_out_error(weight, inputs, rows) < 1e-6


# Padded outputs and inputs, panels of one, two and four vectors, blocks of one tile and of several,
# several blocks of a group, codes that do not fit a signed byte.
@needs_amx
@pytest.mark.parametrize(
    ("shape", "kind", "pattern", "rank"),
    [
        ((10, 172), "int4 tensor", None, 0),
        ((40, 128), "int2 group 32", None, 0),
        ((40, 128), "int3 group 64 asymmetric", None, 0),
        ((600, 192), "int4 group 64 asymmetric", "2:4", 7),
        ((520, 512), "int8 group 256", None, 0),
        ((70, 600), "int8 group 300 asymmetric", None, 0),
        ((30, 160), "int8 channel asymmetric", "1:2", 0),
        ((40, 96), "int4 channel", "50%", 20),
        ((100, 96), "int4 channel", None, 80),
        # Floats: one piece of a weight, two and three; padded steps; one vector of outputs over.
        ((80, 128), "float32", None, 0),
        ((600, 300), "float16", None, 5),
        ((100, 70), "bfloat16", None, 66),
        ((530, 576), "float32", "50%", 0),
        ((66, 100), "float16", "2:4", 0),
    ],
)
def test_a_product_of_many_rows_is_the_float64_product(
    make_weight: Make, shape: tuple[int, int], kind: str, pattern: str | None, rank: int
) -> None:
    assert worst_error(make_weight(shape, kind, pattern, rank, torch.float16)) < 1e-6


@needs_amx
@pytest.mark.parametrize(
    ("kind", "group"), [("int4 group 64", 64), ("int8 channel asymmetric", None)]
)
def test_declared_eight_bit_inputs_are_one_digit(
    make_weight: Make, kind: str, group: int | None
) -> None:
    weight = make_weight((520, 512), kind, None, 0, torch.float16)
    assert worst_error(weight, InputFormat("int8", group)) < 1e-6


@needs_amx
def test_both_factors_of_a_packed_adapter_are_multiplied_in_tiles(
    make_packed_adapter: Make,
) -> None:
    weight = make_packed_adapter((40, 96), 32, "int4 channel", "int4 group 16", "int8 group 48")
    assert worst_error(weight) < 1e-6


def test_floats_of_every_size_are_as_accurate_as_in_float32() -> None:
    values = torch.randn(96, 256) * torch.logspace(-12, 12, 256)
    panels = Panels(format_of(Dense(values)))
    module = Loaded(compiled(text_of(panels, (8,)), "amx", CPU), CPU)
    x = torch.randn(8, 256) * torch.logspace(9, -9, 256)
    stored = [module.put(tensor) for tensor in panels.pack(Dense(values)).values()]
    found = module.fetch(module.call("rows_8", [module.put(x), *stored]))
    exact = x.double() @ values.double().T
    assert relative_error(found, exact) < 2 * relative_error(x @ values.T, exact) + 1e-7


def test_narrow_floats_stay_on_vector_instructions(make_weight: Make) -> None:
    for shape, tiled in [((NARROW, 256), False), ((256, NARROW), False), ((65, 65), True)]:
        panels = Panels(format_of(make_weight(shape, "float16")))
        code = str(linear_kernels("f", panels, 16, AMX).executables)
        assert ("tdpbf16ps" in code) == tiled


def test_few_rows_stay_on_dot_products_of_vectors(make_weight: Make) -> None:
    assert for_rows(AMX, TILED_ROWS) == AMX
    assert for_rows(AMX, TILED_ROWS - 1).flavour == "avx512-vnni"
    assert for_rows(INSTRUCTIONS["plain"], 1).flavour == "plain"
    panels = Panels(format_of(make_weight((40, 64), "int4 channel")))
    code = [linear_kernels("f", panels, m, AMX).executables for m in (TILED_ROWS - 1, TILED_ROWS)]
    assert ["tdpbssd" in str(kernels) for kernels in code] == [False, True]
