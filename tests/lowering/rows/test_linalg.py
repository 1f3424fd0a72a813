"""Every packed linear, compiled for the CPU, against the float64 product of what it stands for."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from trinity.lowering.graph import annotate
from trinity.lowering.mlir import dialects
from trinity.lowering.module import check, devices
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.rows.row_storage import layout_of
from trinity.lowering.targets import targets
from trinity.methods.formats import (
    Adapted,
    CompressedWeight,
    InputFormat,
    Quantized,
    Sparse,
    format_of,
)

Make = Callable[..., CompressedWeight]
ROWS = replace(targets.get("llvm-cpu"), kernels=None)  # storage in rows, no kernel of ours
COUNTS = (1, 9)  # of tokens: decoding and prefill are other loops

FORMATS = [
    ((24, 40), "float32", None, 0),
    ((24, 40), "bfloat16", None, 3),
    ((24, 172), "int4 tensor", None, 0),
    ((24, 64), "int4 group 16", None, 0),
    ((24, 30), "int3 group 10 asymmetric", None, 0),
    ((24, 43), "int2 channel", None, 0),
    ((24, 40), "int8 group 10", "50%", 0),
    ((24, 172), "int4 channel", "2:4", 5),
    ((24, 64), "float16", "2:4", 0),
    ((24, 48), "int3 group 24 asymmetric", "3:8", 0),
]


def with_scaled_inputs(weight: CompressedWeight) -> CompressedWeight:
    """The same weight with a scale for every input."""
    if isinstance(weight, (Adapted, Sparse)):
        name = "base" if isinstance(weight, Adapted) else "values"
        inner = with_scaled_inputs(getattr(weight, name))
        return replace(weight, **{name: inner})  # type: ignore[arg-type]
    assert isinstance(weight, Quantized)
    return replace(weight, input_scale=(torch.rand(weight.shape[1]) + 0.5).half())


def worst_error(weight: CompressedWeight, inputs: InputFormat | None = None) -> float:
    """Largest relative error over every count of tokens, of one module that has them all.

    inputs: what they are rounded to, in float64 too
    """
    declared = replace(format_of(weight), inputs=inputs)
    module = Loaded(compile_text(check.linears_text(declared, ROWS, COUNTS), ROWS), ROWS)
    stored = [module.put(tensor) for tensor in layout_of(declared).pack(weight).values()]
    errors = []
    for rows in COUNTS:
        x = torch.randn(rows, weight.shape[1])
        made = module.call(annotate.function_name(declared, rows), [module.put(x), *stored])
        rounded = inputs.rounded(x) if inputs else x
        expected = rounded.double() @ weight.dequantize().double().T
        errors.append(check.relative_error(module.fetch(made), expected))
    return max(errors)


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), FORMATS)
def test_a_compiled_linear_is_the_float64_product_of_its_weight(
    make_weight: Make, shape: tuple[int, int], kind: str, pattern: str | None, rank: int
) -> None:
    weight = make_weight(shape, kind, pattern, rank, torch.float16)
    assert worst_error(weight) < 2e-6


@pytest.mark.parametrize("size", [12, 48])
def test_inputs_that_are_turned_are_multiplied_by_the_matrix_first(
    make_weight: Make, size: int
) -> None:
    weight = make_weight((24, 48), "int4 group 16", None, 3, torch.float16)
    assert worst_error(weight, InputFormat(None, turned=size)) < 2e-6


@pytest.mark.parametrize("group", [None, 16])
def test_declared_eight_bit_inputs_are_rounded_as_in_torch(
    make_weight: Make, group: int | None
) -> None:
    weight, inputs = make_weight((24, 48), "int4 channel", "2:4", 5), InputFormat("int8", group)
    assert worst_error(weight, inputs) < 2e-6
    layout = layout_of(replace(format_of(weight), inputs=inputs))
    for rows in COUNTS:
        text = dialects.verified(annotate.annotated_function(layout, rows), "annotated")
        assert "math.roundeven" in text


@pytest.mark.parametrize("rows", [1, 9])
def test_declared_eight_bit_inputs_are_rounded_on_vulkan(make_weight: Make, rows: int) -> None:
    vulkan = targets.get("vulkan")
    if not devices.available(vulkan):
        pytest.skip("no Vulkan device (Debian's mesa-vulkan-drivers has one that runs on the CPU)")
    weight = make_weight((24, 48), "int4 channel", "2:4", 5)
    assert check.linear_error(weight, vulkan, rows, inputs=InputFormat("int8", 16)) < 2e-6


@pytest.mark.parametrize("inputs", [None, InputFormat("int8", 16)])
def test_outliers_are_added_to_the_product(make_weight: Make, inputs: InputFormat | None) -> None:
    weight = make_weight((24, 64), "int4 group 16", "2:4", 3, torch.float16, 4)
    assert worst_error(weight, inputs) < 1e-6


def test_declared_eight_bit_inputs_compile_for_cuda(make_weight: Make) -> None:
    weight, cuda = make_weight((24, 48), "int4 channel", "2:4", 5), targets.get("cuda")
    declared = replace(format_of(weight), inputs=InputFormat("int8", 16))
    assert compile_text(check.linear_text(declared, cuda, 9), cuda)


PACKED_ADAPTERS = [
    ("int4 group 8", "int4 group 8"),
    ("float16", "int4 group 16"),
    ("int4 channel", "float16"),
    ("float16", "2:4 float16"),
    ("int3 group 8 asymmetric", "2:4 int4 group 8"),
]


@pytest.mark.parametrize(("high", "low"), PACKED_ADAPTERS)
def test_a_packed_adapter_is_multiplied_as_what_it_stands_for(
    make_packed_adapter: Make, high: str, low: str
) -> None:
    weight = make_packed_adapter((24, 48), 8, "int4 channel", high, low)
    assert worst_error(weight) < 2e-6


@pytest.mark.parametrize(("high", "low"), PACKED_ADAPTERS)
def test_the_annotated_function_of_a_packed_adapter_verifies(
    make_packed_adapter: Make, high: str, low: str
) -> None:
    layout = layout_of(format_of(make_packed_adapter((24, 48), 8, "int4 channel", high, low)))
    dialects.verified(annotate.annotated_function(layout, 1), "annotated")


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize(("kind", "pattern"), [("int4 tensor", "2:4"), ("int8 group 8", None)])
def test_scaled_inputs_are_multiplied_and_the_adapter_reads_them_unscaled(
    make_weight: Make, kind: str, pattern: str | None, rows: int
) -> None:
    weight = with_scaled_inputs(make_weight((24, 48), kind, pattern, 5))
    assert check.linear_error(weight, ROWS, rows) < 2e-6
    dialects.verified(annotate.annotated_function(layout_of(format_of(weight)), rows), "annotated")
    layout = layout_of(format_of(weight))
    assert torch.equal(layout.unpack(layout.pack(weight)).dequantize(), weight.dequantize())


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), FORMATS)
def test_the_annotated_function_verifies_and_round_trips(
    make_weight: Make, shape: tuple[int, int], kind: str, pattern: str | None, rank: int
) -> None:
    layout = layout_of(format_of(make_weight(shape, kind, pattern, rank)))
    text = dialects.verified(annotate.annotated_function(layout, 1), "annotated")
    bits = kind.split()[0].removeprefix("int")
    sign = "u" if "asymmetric" in kind else "i"
    assert (f"!quant.uniform<{sign}{bits}:f32" in text) == kind.startswith("int")
    if pattern and ":" in pattern:
        assert f"structured[{pattern.replace(':', ', ')}]" in text
    elif pattern:
        assert ": compressed" in text


def test_equal_function_names_mean_equal_formats(make_weight: Make) -> None:
    formats = set()
    for shape, kind, pattern, rank in FORMATS:
        for scale_dtype in (torch.float32, torch.float16):
            formats.add(format_of(make_weight(shape, kind, pattern, rank, scale_dtype)))
    assert len({annotate.function_name(found, 1) for found in formats}) == len(formats)
