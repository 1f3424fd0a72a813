"""The Vulkan kernel for many tokens, against float64, and which devices take it."""

from collections.abc import Iterator, Mapping
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
from trinity.lowering.kernels import strip_geometry
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan import launch, tiles
from trinity.lowering.module.check import relative_error
from trinity.lowering.module.invoke import Loaded
from trinity.methods.formats import Adapted, Floats, WeightFormat, format_of

TOLERANCE = 1e-6  # of the largest output
# Tiles that are full and not, an odd number of panels, and every size of tile.
WEIGHTS = {
    "odd": ((70, 100), "int4 tensor", None, 3, 33),
    "long": ((40, 1184), "int4 group 148 asymmetric", "2:4", 0, 100),
    "half": ((70, 296), "int4 group 148", "50%", 0, 64),
    "half_eight": ((40, 160), "int8 channel asymmetric", "50%", 0, 9),
    "half_float16": ((40, 160), "float16", "50%", 0, 31),
    "three": ((40, 288), "int3 group 96 asymmetric", None, 0, 11),
    "table": ((40, 160), "nf4 group 32", "2:4", 0, 32),
    "bfloat16_masked": ((40, 100), "bfloat16", "2:4", 0, 16),
    "float16": ((40, 96), "float16", None, 0, 9),
    "float32": ((130, 60), "float32", None, 0, 16),
}


@pytest.fixture(scope="module", autouse=True)
def _small_products_too() -> Iterator[None]:
    """Also where a GPU would be left idle, and for few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "FILL", 1)
        patch.setattr(tiles, "MORE", tiles.MORE | {tiles.FEW: 1000})
        yield


@pytest.fixture(scope="module")
def products() -> dict[str, Product]:
    """By name."""
    torch.manual_seed(1)
    made = {
        name: Product(
            random_weight(shape, kind, pattern, rank, torch.float16), torch.randn(rows, shape[1])
        )
        for name, (shape, kind, pattern, rank, rows) in WEIGHTS.items()
    }
    base, low = random_weight((40, 96), "int4 tensor"), packed_factors("int4 group 32", (16, 96))
    factors = Adapted(base, packed_factors("int4 channel", (40, 16)), low)
    return made | {"int4_factors": Product(factors, torch.randn(16, 96))}


def everywhere(text: str) -> str:
    """A module whose kernels for many tokens are for processors too."""
    found = text.replace(
        "arith.cmpi ule, %subgroup, %widest", "arith.cmpi ult, %subgroup, %subgroup"
    )
    assert found != text
    return found


@pytest.fixture(scope="module")
def results(products: Mapping[str, Product]) -> dict[str, Tensor]:
    """What this machine's device makes of them in tiles."""
    require_device()
    module = Loaded(compiled(everywhere(text_of(products))), VULKAN)
    return {name: multiplied(module, name, of.operands) for name, of in products.items()}


def test_a_tile_is_the_float64_product_of_its_weight(
    results: Mapping[str, Tensor], products: Mapping[str, Product]
) -> None:
    found = [launch.launches(Strips(of.format), len(of.x))[1][0] for of in products.values()]
    assert {tiles.tile_of(of) for of in found} == set(tiles.SIZES)  # and not None
    errors = {name: relative_error(results[name], of.expected) for name, of in products.items()}
    assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}


def test_a_weight_of_several_tensors_is_multiplied_in_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    require_device()
    torch.manual_seed(2)
    base, low = (
        random_weight((100, 128), "int4 group 128"),
        packed_factors("int4 tensor", (16, 128)),
    )
    factors = Adapted(base, packed_factors("int4 channel", (100, 16)), low)
    product = Product(factors, torch.randn(16, 128))
    monkeypatch.setattr(strip_geometry, "LARGEST", 2 * Strips(product.format).size(1))
    assert len(Strips(product.format).parts) == 2
    module = Loaded(compiled(everywhere(text_of({"parts": product}))), VULKAN)
    found = multiplied(module, "parts", product.operands)
    assert relative_error(found, product.expected) < TOLERANCE


def test_narrower_subgroups_make_the_same_bits(
    products: Mapping[str, Product], results: Mapping[str, Tensor], tmp_path: Path
) -> None:
    products = some(products, "half_eight")
    settings = {"LP_NATIVE_VECTOR_WIDTH": "128"}
    vmfb = compiled(everywhere(text_of(products)))
    found, printed = elsewhere(vmfb, products, tmp_path, settings)
    assert found is not None, printed
    assert torch.equal(found["half_eight"], results["half_eight"])


def test_a_device_of_narrow_subgroups_gets_no_tiles(
    products: Mapping[str, Product], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Right although tiles are made wrong.  One token a workgroup is compiled soonest."""
    require_device()
    monkeypatch.setattr(launch, "TOKENS", (1,))
    products = some(products, "float32")
    rows = "%slices_wide = arith.constant "
    text = text_of(products).replace(f"{rows}{tiles.ROWS}", f"{rows}0")
    found, printed = elsewhere(
        compiled(text), products, tmp_path, {"LP_NATIVE_VECTOR_WIDTH": "256"}
    )
    assert found is not None, printed
    assert relative_error(found["float32"], products["float32"].expected) < TOLERANCE


def test_subgroups_as_of_a_gpu_make_the_same_bits_and_the_validation_layer_finds_no_fault(
    products: Mapping[str, Product],
    results: Mapping[str, Tensor],
    validation: Mapping[str, str],
    tmp_path: Path,
) -> None:
    """Sixteen lanes get tiles as a GPU does."""
    products = some(products, "half_eight")
    settings = {**validation, "LP_NATIVE_VECTOR_WIDTH": "512"}
    found, printed = elsewhere(compiled(text_of(products)), products, tmp_path, settings)
    assert found is not None, printed
    assert "VUID" not in printed, printed
    assert torch.equal(found["half_eight"], results["half_eight"])


def tile_of(outputs: int, tokens: int) -> int | None:
    """Of a float weight."""
    found = launch.launches(Strips(WeightFormat((outputs, 128), Floats("float32"))), tokens)[1]
    return tiles.tile_of(found[0])


@pytest.fixture
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the other fixture changes, as it is."""
    monkeypatch.setattr(tiles, "FILL", 128)
    monkeypatch.setattr(tiles, "MORE", tiles.MORE | {tiles.FEW: 3})


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_tiles_are_taken_where_they_save_instructions() -> None:
    """Not where most of a tile would have no token."""
    sizes = {1: None, 8: None, 9: None, 16: None, 32: 32, 40: None, 64: 64, 512: 64}
    assert {tokens: tile_of(32000, tokens) for tokens in sizes} == sizes


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_a_tile_is_not_so_large_that_units_of_a_gpu_have_no_work() -> None:
    assert [tile_of(4096, tokens) for tokens in (32, 64, 128)] == [None, 32, 64]


@pytest.mark.parametrize(
    ("kind", "outliers"),
    [("int4 channel", 2), ("rows of 4", 0), ("int4 group 16", 0)],
    ids=["outliers", "tables of each row", "two scales for a block"],
)
def test_what_tiles_do_not_hold_goes_the_other_way(kind: str, outliers: int) -> None:
    weight = random_weight((40, 96), kind, None, 0, torch.float16, outliers)
    assert tiles.tile_of(launch.launches(Strips(format_of(weight)), 64)[1][0]) is None


def test_a_table_and_the_largest_tile_do_not_fit_shared_memory() -> None:
    sizes = tiles.sizes(Strips(format_of(random_weight((40, 96), "e4m3 channel"))))
    held = {size: 4 * (32 * (64 + size) + 256) for size in tiles.SIZES}
    assert sizes == tuple(size for size in tiles.SIZES if held[size] <= launch.SHARED)
