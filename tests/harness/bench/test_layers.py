from typing import get_args

import pytest
import torch

from trinity.harness.bench import layers
from trinity.harness.latency import ceilings
from trinity.harness.recipes.recipe import BenchSpec
from trinity.lowering.module.random_weights import random_weight
from trinity.methods.formats import (
    AdapterFormat,
    Floats,
    Grid,
    RowCodebook,
    WeightFormat,
    parse_pattern,
)

FORMATS = [
    WeightFormat((32, 48), Floats("float32")),
    WeightFormat((32, 48), Grid(4, True, (32, 3), "float32")),
    WeightFormat((32, 48), Grid(4, False, (1, 1), "float32")),
    WeightFormat((32, 48), Grid(4, True, (32, 3), "float32"), parse_pattern("2:4")),
    WeightFormat(
        (32, 48),
        Grid(4, True, (1, 1), "float32"),
        parse_pattern("2:4"),
        AdapterFormat(3, "float16"),
    ),
    WeightFormat((32, 48), RowCodebook(4, 32, "float16")),
    WeightFormat((32, 48), RowCodebook(2, 1, "float16")),
]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "ROTATED_BYTES", 20_000)


@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.label)
def test_another_shape_keeps_group_size_and_share_of_the_rank(weight_format: WeightFormat) -> None:
    larger = layers.resized(weight_format, (64, 96))
    assert larger.shape == (64, 96)
    assert layers.resized(larger, (32, 48)) == weight_format
    random_weight(larger)


def test_every_product_is_that_of_its_weight_on_every_copy() -> None:
    weight = random_weight(FORMATS[3])
    x = torch.randn(2, 48)
    expected = (x.double() @ weight.dequantize().double().T).float()
    for make in (layers.torch_product, layers.iree_product("llvm-cpu")):
        product = make(FORMATS[3], weight, x)
        for _ in range(4):
            found = product.run()
            assert isinstance(found, torch.Tensor)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_layer_has_seconds_a_share_of_the_floor_and_a_speed_up_with_a_word() -> None:
    makers = [layers.iree_product("llvm-cpu")]
    found = layers.bench_layers(FORMATS[3:4] * 2, (1, 3), 5, makers, ceilings.measured())
    assert [(m.metric, m.engine) for m in found] == [
        ("seconds", "iree"),
        ("speedup", "iree"),
        ("seconds", "torch"),
    ] * 2
    packed, speedup, dense = found[:3]
    assert packed.path == "kernel"
    assert packed.details["rotated_copies"] % packed.details["products_per_call"] == 0
    assert packed.details["products_per_call"] > 1 == dense.details["products_per_call"]
    assert packed.details["floor_share"] > 0
    assert packed.details["read_bytes"] < dense.details["read_bytes"] / 4
    assert speedup.details["verdict"] in ("faster", "slower", "no difference shown")
    assert "3 rows" in found[3].name


def test_products_of_many_rows_are_chained_less_and_always_some() -> None:
    lengths = [layers.chained(rows) for rows in range(1, 300)]
    assert lengths[0] == layers.LONGEST_CHAIN
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] > 1


def test_the_shapes_that_a_recipe_may_name_are_those_that_are_known() -> None:
    named = get_args(BenchSpec.model_fields["shapes"].annotation)
    assert set(named) == {"model", *layers.SHAPES}
