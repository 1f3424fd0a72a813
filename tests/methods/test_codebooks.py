"""methods/codebooks.py, and nf4, mxfp4, nvfp4 and fp8, which round to nearest with it."""

import math
from typing import Any

import pytest
import torch

from tests.methods.samples import random_mask
from tests.oracles import codebooks as oracle
from trinity.methods import registry
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Coded, Dense, Sparse, format_of
from trinity.methods.mxfp4 import shared_scale

LEVELS = {
    "nf4": oracle.quantiles(),
    "mxfp4": sorted({*oracle.E2M1, *(-x for x in oracle.E2M1)}),
    "nvfp4": sorted({*oracle.E2M1, *(-x for x in oracle.E2M1)}),
    "fp8": oracle.e4m3(),
}


def compressed(name: str, W: torch.Tensor, **options: Any) -> Coded:
    config = registry.configure(name, options)
    found = registry.get(name).compress(W, Dense(W), LayerStats(), config)  # type: ignore[union-attr]  # they are Methods
    assert isinstance(found, Coded)
    return found


@pytest.mark.parametrize("name", LEVELS)
def test_no_level_under_the_stored_scale_is_nearer(name: str) -> None:
    W = torch.randn(3, 64)
    weight = compressed(name, W)
    scales, found = weight.scales().double(), weight.dequantize().double()
    inputs = 64 // scales.shape[1]
    for i in range(3):
        for j in range(64):
            scale, w = float(scales[i, j // inputs]), float(W[i, j])
            least = oracle.distance(w, scale, LEVELS[name])
            assert abs(float(found[i, j]) - w) <= least + 1e-6 * (scale + abs(w))


@pytest.mark.parametrize(("name", "top"), [("nf4", 1.0), ("fp8", 448.0)])
def test_the_largest_of_a_group_is_the_largest_level(name: str, top: float) -> None:
    W = torch.randn(4, 32)
    weight = compressed(name, W, group_size=16, scale_dtype="float32")
    expected = W.abs().view(4, 2, 16).amax(-1) / top
    assert torch.allclose(weight.scales(), expected, rtol=1e-7)


@pytest.mark.parametrize("largest", [1.0, 3.9, 4.0, 6.0, 7.99, 8.0, 1e-30, 3e38])
def test_the_scale_of_mxfp4_is_the_power_of_two_of_the_specification(largest: float) -> None:
    found = float(shared_scale(torch.tensor([[largest]])).float())
    assert found == 2.0 ** (math.floor(math.log2(largest)) - 2)


def test_the_scale_of_mxfp4_stays_in_the_range_of_its_type() -> None:
    most = torch.tensor([[0.0, 1e-40]])
    assert shared_scale(most).float().tolist() == [[1.0, 2.0**-127]]


def test_mxfp4_cuts_off_what_is_larger_than_six() -> None:
    W = torch.tensor([[7.9, -7.9] + 30 * [0.0]])
    assert compressed("mxfp4", W).dequantize()[0, :2].tolist() == [6.0, -6.0]


def test_the_scales_of_nvfp4_are_those_of_its_paper() -> None:
    W = torch.randn(4, 64) * torch.tensor([[0.01], [0.1], [1.0], [10.0]])
    weight = compressed("nvfp4", W)
    assert weight.outer_scale is not None
    outer = float(W.abs().max()) / (6 * 448)
    assert float(weight.outer_scale) == pytest.approx(outer, rel=1e-6)
    for i in range(4):
        for group in range(4):
            most = float(W[i, 16 * group : 16 * group + 16].abs().max())
            stored = float(weight.scale[i, group].float())
            positive = [level for level in oracle.e4m3() if level > 0]
            assert abs(stored - most / 6 / outer) <= 1e-4 + oracle.distance(
                most / 6 / outer, 1.0, positive
            )


def test_a_group_too_small_for_the_scales_of_nvfp4_is_rounded_under_the_smallest() -> None:
    W = torch.cat([torch.full((1, 16), 1e6), torch.full((1, 16), 1e-3)])
    weight = compressed("nvfp4", W)
    assert float(weight.scale[1, 0].float()) == 2.0**-9
    assert weight.dequantize()[1].tolist() == 16 * [0.0]


@pytest.mark.parametrize("name", LEVELS)
def test_zeros_stay_zero_and_the_rest_is_as_without_them(name: str) -> None:
    W = torch.randn(2, 64)
    zeros = torch.zeros(2, 64)
    assert torch.equal(compressed(name, zeros).dequantize(), zeros)
    beside = compressed(name, torch.cat([W, zeros])).dequantize()
    assert torch.equal(beside, torch.cat([compressed(name, W).dequantize(), zeros]))


@pytest.mark.parametrize("name", LEVELS)
def test_a_mask_is_kept_and_what_it_removes_widens_no_range(name: str) -> None:
    W, mask = torch.randn(4, 64), random_mask(4, 64, NM(2, 4))
    current = Sparse(Dense(W), mask, NM(2, 4))
    config = registry.configure(name, {})
    found = registry.get(name).compress(W, current, LayerStats(), config)  # type: ignore[union-attr]  # they are Methods
    assert isinstance(found, Sparse)
    assert torch.equal(found.mask, mask)
    assert torch.equal(found.dequantize(), compressed(name, W * mask).dequantize())


def test_two_level_scales_of_nf4_cost_eight_bits_a_group() -> None:
    W = torch.randn(8, 128)
    weight = compressed("nf4", W, scale_dtype="float8")
    assert format_of(weight).label == "nf4 group 64 e4m3 scales over float32"
    plain = compressed("nf4", W, scale_dtype="float32").scales()
    assert torch.allclose(weight.scales(), plain, rtol=2.0**-4)  # half a step of 3 bits


@pytest.mark.parametrize(("name", "size"), [("nf4", 64), ("mxfp4", 32), ("nvfp4", 16)])
def test_groups_that_do_not_divide_a_layer_are_refused(name: str, size: int) -> None:
    method, config = registry.get(name), registry.configure(name, {})
    said = method.problem((4, 40), config)  # type: ignore[union-attr]  # they are Methods
    assert said == f"groups of {size} inputs do not divide in = 40"
    with pytest.raises(ConfigError, match=f"{name}: groups of {size}"):
        compressed(name, torch.randn(4, 40))


def test_a_scale_that_its_type_does_not_hold_is_an_error() -> None:
    with pytest.raises(ConfigError, match="scale: holds entries that are not positive"):
        compressed("fp8", torch.full((2, 8), 1e-8), scale_dtype="float16")
