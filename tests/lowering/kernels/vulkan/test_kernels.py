"""Vulkan kernels on the device that this machine has, against float64."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.lowering.conftest import packed_factors, random_weight
from tests.lowering.kernels.vulkan.device import (
    VULKAN,
    Product,
    compiled,
    elsewhere,
    multiplied,
    require_device,
    some,
    text_of,
)
from trinity.lowering.kernels.vulkan.executable import BINDING
from trinity.lowering.module.check import relative_error
from trinity.lowering.module.invoke import Loaded
from trinity.methods.formats import Adapted, CompressedWeight, Quantized

TOLERANCE = 1e-6  # of the largest output
# Rows of each size of workgroup, whole and in part; more rows take Mesa's compiler longer.
WEIGHTS = {
    "one_group": ((5, 128), "int4 group 128", None, 0, (1,)),
    "odd": ((70, 100), "int4 tensor", None, 3, (3,)),
    "short_groups": ((33, 128), "int4 group 16 asymmetric", "2:4", 5, (1,)),
    "long": ((40, 1184), "int4 channel asymmetric", None, 0, (1,)),
    "long_two_four": ((40, 1184), "int4 group 296", "2:4", 0, (1,)),
    "one_two": ((40, 96), "int4 group 32 asymmetric", "1:2", 0, (1,)),
    "one_four": ((40, 96), "int4 group 32 asymmetric", "1:4", 0, (1,)),
    "four_eight": ((40, 96), "int4 group 32", "4:8", 0, (1,)),
    "half": ((70, 296), "int4 group 37", "50%", 3, (1,)),
    "half_eight": ((40, 160), "int8 channel asymmetric", "50%", 0, (1,)),
    "half_float16": ((40, 160), "float16", "50%", 0, (1,)),
    "half_bfloat16": ((33, 100), "bfloat16", "70%", 0, (1,)),
    "half_float32": ((40, 96), "float32", "1:4", 0, (1,)),
    "half_two": ((40, 96), "int2 channel", "50%", 0, (1,)),
    "two": ((40, 224), "int2 group 32", None, 0, (1,)),
    "three": ((40, 288), "int3 group 48 asymmetric", None, 0, (1,)),
    "eight": ((40, 96), "int8 group 32", None, 7, (1,)),
    "eight_masked": ((40, 224), "int8 channel asymmetric", "2:4", 0, (1,)),
    "float16": ((40, 96), "float16", None, 33, (1,)),
    "bfloat16": ((40, 100), "bfloat16", None, 0, (2,)),
    "bfloat16_masked": ((40, 100), "bfloat16", "2:4", 0, (1,)),
    "float16_masked": ((40, 96), "float16", "2:4", 0, (1,)),
    "float32": ((31, 60), "float32", None, 0, (1,)),
    "float32_masked": ((40, 160), "float32", "2:4", 0, (1,)),
    "nf4": ((70, 128), "nf4 group 64", None, 3, (1,)),
    "nf4_masked": ((40, 224), "nf4 group 32", "2:4", 0, (1,)),
    "nf4_half": ((40, 160), "nf4 channel", "50%", 0, (1,)),
    "mxfp4": ((33, 96), "e2m1 group 32 e8m0", None, 0, (1,)),
    "nvfp4": ((40, 144), "e2m1 group 16 e4m3 outer", None, 0, (1,)),
    "fp8": ((40, 100), "e4m3 channel", None, 0, (9,)),
    "row_tables": ((70, 100), "rows of 4", None, 0, (1,)),
    "row_tables_two": ((5, 70), "rows of 2", None, 2, (1,)),
}


@pytest.fixture(scope="module")
def products() -> dict[str, Product]:
    """By name and rows."""
    torch.manual_seed(1)
    made = {
        f"{name}_{rows}": Product(
            random_weight(shape, kind, pattern, rank, torch.float16), torch.randn(rows, shape[1])
        )
        for name, (shape, kind, pattern, rank, counts) in WEIGHTS.items()
        for rows in counts
    }
    return made | {f"{name}_{len(of.x)}": of for name, of in others().items()}


def others() -> dict[str, Product]:
    """Weights that take more than a line."""
    base = random_weight((40, 96), "int4 tensor")
    assert isinstance(base, Quantized)
    found: dict[str, CompressedWeight] = {
        "scaled_inputs": replace(base, input_scale=torch.rand(96) + 0.5),
        "bfloat16_scales": random_weight((40, 96), "int4 group 32", None, 0, torch.bfloat16),
    }
    low = packed_factors("int4 group 32", (16, 96))
    for kind in ("int4 channel", "int8 channel"):
        high = packed_factors(kind, (40, 16))
        found[f"{kind[:4]}_factors"] = Adapted(base, high, low)
    found["outliers"] = random_weight((70, 150), "int4 group 50", None, 3, torch.float16, 7)
    found["stream_outliers"] = random_weight((40, 96), "float16", "50%", 0, torch.bfloat16, 3)
    found["row_outliers"] = random_weight((40, 96), "rows of 3", None, 3, torch.bfloat16, 2)
    made = {name: Product(of, torch.randn(1, of.shape[1])) for name, of in found.items()}
    far = random_weight((5, 33000), "int4 channel", None, 0, torch.float32, 2)
    some_inputs = torch.rand(2, 33000) < 0.01  # the sum of all is not exact to the tolerance
    return made | {"far_outliers": Product(far, torch.randn(2, 33000) * some_inputs)}


@pytest.fixture(scope="module")
def vmfb(products: Mapping[str, Product]) -> bytes:
    """A module with a function for each."""
    require_device()
    return compiled(text_of(products))


@pytest.fixture(scope="module")
def results(vmfb: bytes, products: Mapping[str, Product]) -> dict[str, Tensor]:
    """What this machine's device makes of them."""
    module = Loaded(vmfb, VULKAN)
    return {name: multiplied(module, name, of.operands) for name, of in products.items()}


def test_a_kernel_is_the_float64_product_of_its_weight(
    results: Mapping[str, Tensor], products: Mapping[str, Product]
) -> None:
    errors = {name: relative_error(results[name], of.expected) for name, of in products.items()}
    assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}


def test_narrower_subgroups_make_the_same_bits(
    products: Mapping[str, Product], results: Mapping[str, Tensor], tmp_path: Path
) -> None:
    """Mesa's device on the CPU has subgroups of as many lanes as its vectors hold: four, here."""
    products = some(products, "short_groups_1", "three_1", "row_outliers_1")
    settings = {"LP_NATIVE_VECTOR_WIDTH": "128"}
    found, printed = elsewhere(compiled(text_of(products)), products, tmp_path, settings)
    assert found is not None, printed
    assert [name for name in products if not torch.equal(found[name], results[name])] == []


def test_rows_of_a_workgroup_that_share_the_inputs_make_the_same_product(
    products: Mapping[str, Product], tmp_path: Path
) -> None:
    """Subgroups of sixteen lanes get workgroups as a GPU does."""
    require_device()
    products = some(products, "long_1", "long_two_four_1", "row_outliers_1")
    settings = {"LP_NATIVE_VECTOR_WIDTH": "512"}
    found, printed = elsewhere(compiled(text_of(products)), products, tmp_path, settings)
    assert found is not None, printed
    errors = [relative_error(found[name], of.expected) for name, of in products.items()]
    assert max(errors) < TOLERANCE


def without_a_binding(text: str) -> str:
    """A module of one kernel whose layout and calls have one operand fewer than its shader."""
    text = text.replace(f"{BINDING}, ReadOnly>, ", "", 1)
    return re.sub(r", %arg_strips\) : \((.*), tensor<\d+xi8>\) ->", r") : (\1) ->", text)


def test_the_validation_layer_finds_no_fault(
    products: Mapping[str, Product], validation: Mapping[str, str], tmp_path: Path
) -> None:
    products = some(products, "short_groups_1", "three_1", "half_1", "row_outliers_1")
    text = text_of(products)
    found, printed = elsewhere(compiled(text), products, tmp_path, validation)
    assert found is not None, printed
    assert "VUID" not in printed, printed


def test_the_validation_layer_finds_a_layout_that_lacks_a_binding(
    products: Mapping[str, Product], validation: Mapping[str, str], tmp_path: Path
) -> None:
    """Without it such a kernel computes garbage in silence, or crashes the driver."""
    products = some(products, "one_group_1")
    vmfb = compiled(without_a_binding(text_of(products)))
    _, printed = elsewhere(vmfb, products, tmp_path, validation)
    assert "VUID" in printed
