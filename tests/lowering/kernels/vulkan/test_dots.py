"""Products with inputs of 8 bits as dot products of integers, against float64."""

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
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan.dots import dotted
from trinity.lowering.module.check import relative_error
from trinity.lowering.module.invoke import Loaded
from trinity.methods.formats import Adapted, InputFormat, Quantized, format_of

TOLERANCE = 1e-6  # of the largest output
WEIGHTS = {
    "four": ((40, 256), "int4 group 128", None, 0, 128, 1),
    "token": ((70, 96), "int4 channel asymmetric", "2:4", 0, None, 2),
    "eight": ((40, 128), "int8 group 64 asymmetric", None, 0, 32, 2),
    "eight_masked": ((40, 160), "int8 channel", "50%", 0, 32, 1),
    "three": ((33, 192), "int3 group 32 asymmetric", None, 0, 64, 1),
    "two": ((40, 96), "int2 group 96", None, 0, 32, 1),
}


@pytest.fixture(scope="module")
def products() -> dict[str, Product]:
    """By name."""
    torch.manual_seed(1)
    made = {
        name: Product(
            random_weight(shape, kind, pattern, rank, torch.float16),
            torch.randn(rows, shape[1]),
            InputFormat("int8", group),
        )
        for name, (shape, kind, pattern, rank, group, rows) in WEIGHTS.items()
    }
    low, high = packed_factors("int4 group 32", (16, 96)), packed_factors("int4 channel", (40, 16))
    factors = Adapted(random_weight((40, 96), "int4 tensor"), high, low)
    x = torch.randn(2, 96)
    x[1] = 0
    return made | {"factors": Product(factors, x, InputFormat("int8", 32))}


@pytest.fixture(scope="module")
def results(products: Mapping[str, Product]) -> dict[str, Tensor]:
    """What this machine's device makes of them."""
    require_device()
    module = Loaded(compiled(text_of(products)), VULKAN)
    return {name: multiplied(module, name, of.operands) for name, of in products.items()}


def test_a_kernel_is_the_float64_product_of_the_rounded_inputs(
    results: Mapping[str, Tensor], products: Mapping[str, Product]
) -> None:
    assert all(dotted(Strips(of.format)) for of in products.values())
    errors = {name: relative_error(results[name], of.expected) for name, of in products.items()}
    assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}


def test_sums_of_integers_are_exact_and_what_is_no_number_stays_so() -> None:
    """Inputs that are their own codes, because the largest of a token is 127."""
    require_device()
    torch.manual_seed(2)
    base = random_weight((33, 64), "int8 channel asymmetric")
    assert isinstance(base, Quantized)
    x = torch.randint(-127, 128, (2, 64)).float()
    x[:, 0] = 127
    x[1, 1] = torch.nan
    weight = replace(base, scale=torch.ones_like(base.scale))
    product = Product(weight, x, InputFormat("int8"))
    module = Loaded(compiled(text_of({"whole": product})), VULKAN)
    found = multiplied(module, "whole", product.operands)
    assert torch.equal(found[0], product.expected[0].float())
    assert found[1].isnan().all()


def test_subgroups_as_of_a_gpu_and_the_validation_layer_agree(
    products: Mapping[str, Product], validation: Mapping[str, str], tmp_path: Path
) -> None:
    products = some(products, "four")
    settings = {**validation, "LP_NATIVE_VECTOR_WIDTH": "512"}
    found, printed = elsewhere(compiled(text_of(products)), products, tmp_path, settings)
    assert found is not None, printed
    assert "VUID" not in printed, printed
    assert relative_error(found["four"], products["four"].expected) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "group", "outliers"),
    [
        ("float16", 32, 0),
        ("nf4 group 32", 32, 0),
        ("int4 group 48", 32, 0),
        ("int4 group 32", 48, 0),
        ("int4 group 32", 32, 2),
    ],
)
def test_inputs_are_floats_where_a_block_has_no_codes_or_more_steps_than_one(
    kind: str, group: int, outliers: int
) -> None:
    weight = random_weight((40, 96), kind, None, 0, torch.float16, outliers)
    about = replace(format_of(weight), inputs=InputFormat("int8", group))
    assert not dotted(Strips(about))


def test_scaled_inputs_are_floats() -> None:
    base = random_weight((40, 96), "int4 tensor")
    assert isinstance(base, Quantized)
    about = format_of(replace(base, input_scale=torch.rand(96) + 0.5))
    assert not dotted(Strips(replace(about, inputs=InputFormat("int8", 32))))
