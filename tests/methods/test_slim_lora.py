"""methods/slim_lora.py."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.methods.samples import GridCase, random_mask, random_quantized, random_stats
from tests.oracles.low_rank import best_product, remaining_error, weighted_norm
from trinity.methods import registry, rtn
from trinity.methods.adapters import rank_of
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Adapted, CompressedWeight, Dense, Sparse
from trinity.methods.slim_lora import (
    SLIM_LORA,
    SlimLoraConfig,
    compress,
    factors,
    saliency,
)
from trinity.methods.wanda import shifted


def config(**options: Any) -> SlimLoraConfig:
    """Factors in float32, so that only the algorithm is judged."""
    return SlimLoraConfig.model_validate({"dtype": "float32", **options})


def compressed(W: torch.Tensor) -> Sparse:
    """Something to repair: W, 2:4 at random."""
    return Sparse(Dense(W), random_mask(W.shape[0], W.shape[1], NM(2, 4)), NM(2, 4))


def weighted_error(W: torch.Tensor, weight: CompressedWeight, d: torch.Tensor) -> float:
    return weighted_norm((W - weight.dequantize()).double().numpy(), d.double().numpy())


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (1, 7), (7, 1)], ids=str)
def test_the_product_is_the_best_of_its_rank_in_the_weighted_norm(shape: tuple[int, int]) -> None:
    E, d = torch.randn(shape), 10 ** torch.randn(shape[1])
    for rank in range(1, min(shape) + 1):
        B, A = factors(E, d, rank)
        expected = best_product(E.double().numpy(), d.double().numpy(), rank)
        # Columns of small d count for little in the fit, and carry the error of the float32 SVD.
        np.testing.assert_allclose((B @ A).double().numpy(), expected, atol=1e-4)


def test_the_weighted_error_is_what_the_left_out_singular_values_say() -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    current, d = compressed(W), saliency(stats, W, "rms")
    E = (W - current.dequantize()).double().numpy()
    for rank in range(1, 9):
        found = weighted_error(W, compress(W, current, stats, config(rank=rank)), d)
        expected = remaining_error(E, d.double().numpy(), rank)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-4 * float(d.max()))


def test_a_higher_rank_never_leaves_more_error() -> None:
    W, stats = torch.randn(12, 16), random_stats(16)
    current, d = compressed(W), saliency(stats, W, "rms")
    errors = [
        weighted_error(W, compress(W, current, stats, config(rank=rank)), d)
        for rank in range(1, 12)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", ["rms", "mean-abs", "none"])
def test_full_rank_reconstructs_the_weight(kind: str) -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    weight = compress(W, compressed(W), stats, config(rank=8, saliency=kind))
    torch.testing.assert_close(weight.dequantize(), W, atol=1e-5, rtol=0)


def test_full_rank_reconstructs_inputs_that_are_almost_dead() -> None:
    # Dividing the right singular vectors by d would multiply their float32 error by 1e7.
    W, d = torch.randn(16, 24), torch.logspace(-4, 3, 24)
    B, A = factors(W, d, 16)
    torch.testing.assert_close(B @ A, W, atol=1e-4, rtol=0)


def test_constant_saliency_is_naive_lora() -> None:
    W = torch.randn(8, 16)
    current, stats = compressed(W), LayerStats(x_norm=torch.full((16,), 0.7))
    ours = compress(W, current, stats, config(rank=3))
    naive = compress(W, current, LayerStats(), config(rank=3, saliency="none"))
    torch.testing.assert_close(ours.B @ ours.A, naive.B @ naive.A, atol=1e-5, rtol=0)


def test_each_of_weighted_and_naive_wins_in_its_own_norm() -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    current, d, ones = compressed(W), saliency(stats, W, "rms"), torch.ones(16)
    for rank in (1, 3, 6):
        ours = compress(W, current, stats, config(rank=rank))
        naive = compress(W, current, stats, config(rank=rank, saliency="none"))
        assert weighted_error(W, ours, d) < weighted_error(W, naive, d)
        assert weighted_error(W, naive, ones) < weighted_error(W, ours, ones)


@pytest.mark.parametrize("kind", ["rms", "mean-abs"])
def test_scaling_all_activations_leaves_the_product_unchanged(kind: str) -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    assert stats.x_norm is not None
    assert stats.x_mean_abs is not None
    louder = LayerStats(x_norm=1024 * stats.x_norm, x_mean_abs=1024 * stats.x_mean_abs)
    current, options = compressed(W), config(rank=3, saliency=kind)
    quiet, loud = (compress(W, current, s, options) for s in (stats, louder))
    torch.testing.assert_close(loud.B @ loud.A, quiet.B @ quiet.A, atol=1e-5, rtol=0)


def test_b_is_orthonormal_so_that_a_holds_the_size() -> None:
    B, _ = factors(torch.randn(12, 16), torch.rand(16) + 0.1, 5)
    torch.testing.assert_close(B.T @ B, torch.eye(5), atol=1e-6, rtol=0)


def test_saliency_is_positive_also_for_dead_inputs() -> None:
    x = torch.tensor([0.0, 0.5, 2.0])
    W, stats = torch.randn(2, 3), LayerStats(x_norm=x, x_mean_abs=x)
    assert torch.equal(saliency(stats, W, "rms"), shifted(x))
    assert saliency(stats, W, "mean-abs").tolist() == [0.5, 1.0, 2.5]
    assert saliency(stats, W, "none").tolist() == [1, 1, 1]
    dead = LayerStats(x_norm=torch.zeros(3), x_mean_abs=torch.zeros(3))
    assert saliency(dead, W, "rms").tolist() == [1, 1, 1]
    assert saliency(dead, W, "mean-abs").tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("rank", "expected"), [(0.1, 57), (0.001, 1), (0.5, 288), (57, 57), (1, 1), (9999, 576)]
)
def test_a_fraction_is_of_the_smaller_side_rounded_down(rank: float, expected: int) -> None:
    assert rank_of((1536, 576), rank) == expected
    assert rank_of((576, 1536), rank) == expected


def test_the_adapter_keeps_what_it_stands_beside() -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    for current in (Dense(W.half()), random_quantized(8, 16, GridCase(4)), compressed(W)):
        assert compress(W, current, stats, config(rank=2)).base is current


@pytest.mark.parametrize("bits", [None, 4])
def test_a_pruner_that_updates_weights_is_repaired_from_what_it_left(bits: int | None) -> None:
    # As SparseGPT leaves a layer: kept weights are no longer the original ones, and rounded.
    W, stats, mask = torch.randn(8, 16), random_stats(16), random_mask(8, 16, NM(2, 4))
    updated = W + 0.3 * torch.randn(8, 16)
    values = Dense(updated) if bits is None else rtn.compress(updated, rtn.RtnConfig(group_size=8))
    current, d = Sparse(values, mask, NM(2, 4)), saliency(stats, W, "rms")
    weight = compress(W, current, stats, config(rank=3))
    assert weight.base is current
    E = (W - current.dequantize()).double().numpy()
    expected = remaining_error(E, d.double().numpy(), 3)
    assert weighted_error(W, weight, d) == pytest.approx(expected, rel=1e-4)


def test_nothing_lost_gives_an_adapter_that_adds_nothing() -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    weight = compress(W, Dense(W), stats, config(rank=2))
    assert torch.equal(weight.dequantize(), W)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_factors_are_stored_in_the_type_asked_for(dtype: str) -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    weight = compress(W, compressed(W), stats, config(rank=2, dtype=dtype))
    assert str(weight.A.dtype) == str(weight.B.dtype) == f"torch.{dtype}"


def test_inputs_are_left_unchanged() -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    current = compressed(W)
    assert stats.x_norm is not None
    before = W.clone(), current.dequantize(), stats.x_norm.clone()
    compress(W, current, stats, config(rank=2))
    assert torch.equal(W, before[0])
    assert torch.equal(current.dequantize(), before[1])
    assert torch.equal(stats.x_norm, before[2])


def test_missing_statistics_are_refused_with_both_ways_out() -> None:
    W = torch.randn(8, 16)
    for kind in ("rms", "mean-abs"):
        with pytest.raises(ConfigError, match=rf"saliency '{kind}' .*calibration.*saliency: none"):
            compress(W, compressed(W), LayerStats(), config(saliency=kind))
    naive = SLIM_LORA.compress(W, compressed(W), LayerStats(), config(saliency="none"))
    assert isinstance(naive, Adapted)


def test_a_second_adapter_is_refused() -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    once = compress(W, Dense(W), stats, config())
    with pytest.raises(ConfigError, match=r"slim-lora: .* already gave this weight adapters"):
        SLIM_LORA.compress(W, once, stats, config())


@pytest.mark.parametrize("rank", [0, 0.0, -1, 1.0, 1.5, 57.0, "many", True], ids=repr)
def test_a_rank_that_is_neither_fraction_nor_whole_is_refused(rank: object) -> None:
    with pytest.raises(ConfigError, match="method 'slim-lora': rank"):
        registry.configure("slim-lora", {"rank": rank})
