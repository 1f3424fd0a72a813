"""methods/adapters.py, and the adapters that SLiM-LoRA quantizes and prunes."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.methods.samples import assert_same_weight, random_mask, random_stats
from tests.oracles.low_rank import best_pruned_rank_one, masked_least_squares
from tests.oracles.quantization import tile_absmax
from trinity.methods import registry, slim, slim_lora
from trinity.methods.adapters import adapter_problem, adapter_rank, stored
from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    NM,
    Adapted,
    Dense,
    Quantized,
    Sparse,
    Transposed,
    bits_per_weight,
    format_of,
    pack,
    unpack,
)
from trinity.methods.slim_lora import SlimLoraConfig, factors, pruned_factors, saliency


def config(**options: Any) -> SlimLoraConfig:
    """4-bit factors in groups of 4, scales in float32 so that only the arithmetic is judged."""
    defaults = {"dtype": "float32", "adapter_bits": 4, "adapter_group": 4}
    return SlimLoraConfig.model_validate({**defaults, **options})


def half_pruned(W: torch.Tensor) -> Sparse:
    """Something to repair: W, 2:4 at random."""
    return Sparse(Dense(W), random_mask(W.shape[0], W.shape[1], NM(2, 4)), NM(2, 4))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("along", "tile"), [("inputs", (4, 1)), ("outputs", (1, 4))])
def test_factors_are_quantized_in_the_tiles_of_the_published_layout(
    bits: int, along: str, tile: tuple[int, int]
) -> None:
    # The published factors are [in, rank] and [rank, out]; `inputs` is the code's default, down
    # the first dimension, and `outputs` its column-wise grouping.
    B, A = torch.randn(12, 8), torch.randn(8, 16)
    high, low = stored(B, A, None, config(adapter_bits=bits, adapter_groups_along=along))
    assert not isinstance(high, torch.Tensor)
    assert not isinstance(low, torch.Tensor)
    for found, factor in ((low, A), (high, B)):
        expected = tile_absmax(factor.T.double().numpy(), *tile, bits).T
        np.testing.assert_allclose(found.dequantize().double().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("along", ["inputs", "outputs"])
def test_every_scale_is_that_of_the_largest_entry_of_its_group(along: str) -> None:
    _, low = stored(torch.randn(8, 8), torch.randn(8, 16), None, config(adapter_groups_along=along))
    kept = low.values if isinstance(low, Transposed) else low
    assert isinstance(kept, Quantized)
    assert isinstance(low, Transposed) == (along == "outputs")
    codes = kept.codes.view(kept.codes.shape[0], -1, 4)
    assert bool((codes.abs().amax(-1) == 7).all())


def test_groups_across_the_rank_mix_singular_values_and_lose_more() -> None:
    # Why `inputs` is the default: a row of A is as large as its singular value.
    E, d = torch.randn(32, 64) @ torch.diag(torch.logspace(0, -2, 64)), torch.ones(64)
    B, A = factors(E, d, 16)
    errors = []
    for along in ("inputs", "outputs"):
        high, low = stored(B, A, None, config(adapter_groups_along=along, adapter_group=16))
        errors.append(float((Adapted(Dense(E), high, low).product() - B @ A).norm()))
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"adapter_bits": None}, 57),
        ({"adapter_group": 128}, 128),
        ({"adapter_group": 64}, 64),
        ({"adapter_group": 16}, 64),
        ({"adapter_group": 16, "rank_rounding": "down"}, 48),
        ({"adapter_group": 128, "rank_rounding": "down"}, 128),
        ({"adapter_bits": None, "rank_multiple": 32}, 64),
        ({"adapter_group": "channel"}, 57),
        ({"adapter_group": 64, "rank": 64}, 64),
        ({"adapter_group": 64, "rank": 0.99}, 576),
    ],
    ids=str,
)
def test_the_rank_is_rounded_to_whole_groups_where_the_factors_are_quantized(
    options: dict[str, Any], expected: int
) -> None:
    assert adapter_rank((576, 1536), config(**options)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter_group": 128}, "adapter_group 128 does not divide in = 576"),
        ({"adapter_group": 64, "rank_multiple": 1}, "adapter_group 64 does not divide rank = 57"),
        (
            {"adapter_group": 128, "adapter_groups_along": "outputs"},
            "adapter_group 128 does not divide out = 1000",
        ),
        ({"adapter_pattern": "2:7"}, "adapter_pattern 2:7 does not divide in = 576"),
        ({"adapter_pattern": "50%"}, "adapter_pattern 50% is not N:M"),
        (
            {"adapter_pattern": "2:4", "adapter_groups_along": "outputs"},
            "adapter_groups_along must be inputs",
        ),
    ],
)
def test_what_does_not_fit_a_layer_is_said_before_any_weight_is_read(
    options: dict[str, Any], message: str
) -> None:
    found = adapter_problem((1000, 576), config(**{"adapter_group": 64, **options}))
    assert found is not None
    assert message in found
    planned = registry.get("slim-lora")
    assert isinstance(planned, type(slim_lora.SLIM_LORA))
    assert planned.problem((1000, 576), config(**{"adapter_group": 64, **options})) == found
    with pytest.raises(ConfigError, match="slim-lora: adapter_"):
        slim_lora.compress(
            torch.randn(6, 7), Dense(torch.randn(6, 7)), random_stats(7), config(adapter_group=5)
        )


def test_four_bit_adapters_cost_a_quarter_and_their_scales() -> None:
    W, stats = torch.randn(64, 128), random_stats(128)
    current = half_pruned(W)
    base = bits_per_weight(current)
    for options, bits in [({"adapter_bits": None}, 16), ({"adapter_group": 8}, 4 + 16 / 8)]:
        weight = slim_lora.compress(W, current, stats, config(rank=16, dtype="float16", **options))
        expected = bits * 16 * (64 + 128) / W.numel()
        assert bits_per_weight(weight) - base == pytest.approx(expected, rel=1e-9)


def test_quantized_adapters_repair_less_than_floats_and_more_than_none() -> None:
    W, stats = torch.randn(64, 128), random_stats(128)
    current, d = half_pruned(W), saliency(stats, W, "rms")
    errors = [
        float(((W - weight.dequantize()) * d).norm())
        for weight in (
            slim_lora.compress(W, current, stats, config(adapter_bits=None, rank=16)),
            slim_lora.compress(W, current, stats, config(adapter_bits=8, rank=16)),
            slim_lora.compress(W, current, stats, config(adapter_bits=4, rank=16)),
            current,
        )
    ]
    assert errors == sorted(errors)
    assert errors[1] < 1.001 * errors[0]


def test_the_remainder_is_taken_from_the_quantized_factors() -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    options = slim.SlimConfig.model_validate(
        {"pattern": "2:4", "rank": 4, "adapter": "refit", "quantizer": "absmax", "dtype": "float32",
         "adapter_bits": 4, "adapter_group": 4}
    )  # fmt: skip
    weight = slim.compress(W, stats, options)
    assert isinstance(weight.base, Sparse)
    assert isinstance(weight.base.values, Quantized)
    error = (weight.dequantize() - W).abs()[weight.base.mask]
    assert float(error.max()) <= float(weight.base.values.scale) / 2 * (1 + 1e-4)


@pytest.mark.parametrize("factor", [0.0, 1e-12, 1.0])
def test_an_adapter_too_small_for_its_scale_becomes_zeros(factor: float) -> None:
    B, A = torch.randn(8, 4), torch.randn(4, 16) * factor
    _, low = stored(B, A, None, config(dtype="float16"))
    assert isinstance(low, Quantized)
    assert bool((low.codes == 0).all()) == (factor < 1)


@pytest.mark.parametrize(
    "options",
    [
        {"adapter_bits": 4},
        {"adapter_bits": 3, "adapter_groups_along": "outputs"},
        {"adapter_bits": None, "adapter_pattern": "2:4"},
        {"adapter_bits": 4, "adapter_pattern": "2:4"},
    ],
    ids=str,
)
def test_packed_adapters_survive_storage(options: dict[str, Any]) -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    weight = slim_lora.compress(
        W, half_pruned(W), stats, config(rank=8, dtype="float16", **options)
    )
    assert_same_weight(unpack(format_of(weight), pack(weight)), weight)


def test_a_pruned_adapter_keeps_two_of_four_along_the_inputs() -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    weight = slim_lora.compress(
        W, half_pruned(W), stats, config(rank=4, adapter_pattern="2:4", adapter_bits=None)
    )
    assert isinstance(weight.A, Sparse)
    assert bool(((weight.A.dequantize() != 0).view(4, 8, 4).sum(-1) == 2).all())
    assert "A 2:4 float32" in format_of(weight).label


def weighted_error(E: torch.Tensor, B: torch.Tensor, A: torch.Tensor, d: torch.Tensor) -> float:
    return float(((E - B @ A) * d).double().norm())


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_a_pruned_fit_is_never_worse_than_pruning_the_fit(n: int, m: int, rank: int) -> None:
    E, d = torch.randn(12, 32), torch.rand(32) + 0.1
    B, A = factors(E, d, rank)
    _, _, mask = pruned_factors(E, d, rank, NM(n, m))
    found = weighted_error(E, *pruned_factors(E, d, rank, NM(n, m))[:2], d)
    magnitude = (A * d).abs().view(rank, -1, m)
    kept = magnitude >= magnitude.sort(-1, descending=True).values[..., n - 1 : n]
    naive = weighted_error(E, B, A * kept.view(rank, -1), d)
    assert found < naive
    assert bool((mask.view(rank, -1, m).sum(-1) == n).all())


def test_in_a_pruned_fit_each_factor_is_the_best_for_the_other() -> None:
    E, d = torch.randn(12, 24), torch.rand(24) + 0.1
    B, A, mask = pruned_factors(E, d, 5, NM(2, 4))
    T = (E * d).double().numpy()
    best = masked_least_squares(B.double().numpy(), T, mask.numpy())
    np.testing.assert_allclose((A * d).double().numpy(), best, atol=1e-5)
    # Of all orthonormal B, the best has an inner product with T A^T equal to its nuclear norm.
    cross = T @ (A * d).double().numpy().T
    inner = float((B.double().numpy() * cross).sum())
    assert inner == pytest.approx(np.linalg.svd(cross, compute_uv=False).sum(), rel=1e-3)


def test_a_pruned_fit_of_rank_one_comes_near_the_best_of_all_masks() -> None:
    ratios = []
    for _ in range(8):
        T = torch.randn(4, 8)
        B, A, _ = pruned_factors(T, torch.ones(8), 1, NM(2, 4))
        best = best_pruned_rank_one(T.double().numpy(), 2, 4)
        ratios.append(weighted_error(T, B, A, torch.ones(8)) / best)
    assert min(ratios) > 1 - 1e-6
    assert sum(ratios) / len(ratios) < 1.05


def test_nothing_to_repair_gives_a_pruned_adapter_of_zeros() -> None:
    B, A, mask = pruned_factors(torch.zeros(8, 16), torch.ones(16), 3, NM(2, 4))
    assert not (B @ A).any()
    assert bool((mask.view(3, 4, 4).sum(-1) == 2).all())
