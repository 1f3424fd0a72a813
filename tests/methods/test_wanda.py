"""methods/wanda.py."""

import numpy as np
import pytest
import torch

from tests.methods.samples import GridCase, random_quantized, random_stats
from tests.oracles.pruning import (
    adaptive_removals,
    diagonal_error,
    shifted_norm,
    smallest_diagonal_error,
    smallest_group_error,
)
from trinity.methods import magnitude, registry
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Unstructured
from trinity.methods.tensors import lowest_removed
from trinity.methods.wanda import (
    WANDA,
    WandaConfig,
    adaptive_mask,
    compress,
    mask,
    scores,
    shifted,
)

PATTERNS = [NM(2, 4), NM(1, 4), NM(2, 8), NM(4, 8), Unstructured(0.5)]


def layer(out: int = 6, d_in: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the norms of its inputs, over two orders of magnitude."""
    return torch.randn(out, d_in), 10 ** (2 * torch.rand(d_in) - 1)


def test_the_score_is_magnitude_times_input_norm() -> None:
    W, x_norm = layer(3, 4)
    for i in range(3):
        for j in range(4):
            expected = abs(float(W[i, j])) * float(x_norm[j])
            assert float(scores(W, x_norm)[i, j]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("removed", [1, 4, 9])
def test_no_mask_of_a_row_with_as_many_zeros_costs_less(removed: int) -> None:
    W, x_norm = layer(4, 10)
    W64, s = W.double().numpy(), x_norm.double().numpy() ** 2
    kept = mask(W, x_norm, Unstructured((removed + 0.5) / 10)).numpy()
    for row, cost in zip(W64, diagonal_error(W64, kept, s), strict=True):
        assert cost == pytest.approx(smallest_diagonal_error(row, s, removed))


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if isinstance(p, NM)], ids=str)
def test_no_mask_that_obeys_the_pattern_costs_less(pattern: NM) -> None:
    W, x_norm = layer(4, 16)
    W64, s = W.double().numpy(), x_norm.double().numpy() ** 2
    kept = mask(W, x_norm, pattern).numpy()
    for row, cost in zip(W64, diagonal_error(W64, kept, s), strict=True):
        assert cost == pytest.approx(smallest_group_error(row, s, pattern.n, pattern.m))


def test_two_four_keeps_exactly_two_of_every_four() -> None:
    W, x_norm = layer()
    assert (mask(W, x_norm, NM(2, 4)).view(6, 4, 4).sum(-1) == 2).all()


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.66, 0.97])
def test_every_row_loses_exactly_the_floor_of_its_share(sparsity: float) -> None:
    W, x_norm = layer(5, 17)
    kept = mask(W, x_norm, Unstructured(sparsity))
    assert ((~kept).sum(1) == int(17 * sparsity)).all()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_kept_weights_are_bit_identical(pattern: NM | Unstructured) -> None:
    W, x_norm = layer()
    sparse = compress(W, Dense(W), x_norm, WandaConfig(pattern=pattern))
    assert torch.equal(sparse.dequantize(), torch.where(sparse.mask, W, 0.0))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_scaling_a_row_leaves_its_mask_unchanged(pattern: NM | Unstructured) -> None:
    W, x_norm = layer()
    factors = torch.tensor([0.25, 0.5, 1, 2, 4, 8])[:, None]  # powers of two: exact
    assert torch.equal(mask(W, x_norm, pattern), mask(factors * W, x_norm, pattern))


@pytest.mark.parametrize("norm", ["plain", "shifted"])
def test_scaling_all_inputs_leaves_every_mask_unchanged(norm: str) -> None:
    W, x_norm = layer()
    x_norm[3] = 0
    config = WandaConfig.model_validate({"pattern": "2:4", "norm": norm})
    masks = [compress(W, Dense(W), c * x_norm, config).mask for c in (1, 2.0**-10, 2.0**10)]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_equal_input_norms_give_magnitude_pruning_by_row() -> None:
    W, x_norm = torch.randn(6, 16), torch.full((16,), 0.5)
    assert torch.equal(mask(W, x_norm, NM(2, 4)), magnitude.mask(W, NM(2, 4)))
    by_row = torch.cat([magnitude.mask(row[None], Unstructured(0.5)) for row in W])
    assert torch.equal(mask(W, x_norm, Unstructured(0.5)), by_row)
    assert torch.equal(by_row, lowest_removed(W.abs(), 8))


def test_a_dead_input_is_pruned_first() -> None:
    W, x_norm = layer(6, 16)
    x_norm[[1, 6]] = 0
    for pattern in (NM(2, 4), Unstructured(0.5)):
        assert not mask(W, x_norm, pattern)[:, [1, 6]].any()


def test_the_shift_adds_the_smallest_positive_squared_norm() -> None:
    for x_norm in (torch.rand(9) + 0.1, torch.tensor([0.0, 3, 2, 0]), torch.zeros(4)):
        expected = shifted_norm(x_norm.double().numpy())
        np.testing.assert_allclose(shifted(x_norm).double().numpy(), expected, rtol=1e-6)


def test_the_shift_does_not_prune_dead_inputs_unseen() -> None:
    W, x_norm = torch.tensor([[10.0, 1.0]]), torch.tensor([0.0, 1.0])
    assert mask(W, x_norm, NM(1, 2)).tolist() == [[False, True]]
    assert mask(W, shifted(x_norm), NM(1, 2)).tolist() == [[True, False]]


def test_the_mask_is_that_of_the_original_weight_not_of_the_quantized_one() -> None:
    W, x_norm = layer(6, 16)
    quantized = random_quantized(6, 16, GridCase(2))
    sparse = compress(W, quantized, x_norm, WandaConfig(pattern=NM(2, 4)))
    assert torch.equal(sparse.mask, mask(W, x_norm, NM(2, 4)))
    assert torch.equal(sparse.dequantize(), quantized.dequantize() * sparse.mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_scored_in_float32(dtype: torch.dtype) -> None:
    W, x_norm = layer()
    W = W.to(dtype)
    assert torch.equal(mask(W, x_norm, NM(2, 4)), mask(W.float(), x_norm, NM(2, 4)))


def test_inputs_are_left_unchanged() -> None:
    W, x_norm = layer()
    before = W.clone(), x_norm.clone()
    compress(W, Dense(W), x_norm, WandaConfig(pattern=NM(2, 4), norm="shifted"))
    assert torch.equal(W, before[0])
    assert torch.equal(x_norm, before[1])


def test_missing_norms_and_pruning_twice_are_refused() -> None:
    W, stats, config = torch.randn(4, 16), random_stats(16), WandaConfig(pattern=NM(2, 4))
    with pytest.raises(ConfigError, match="wanda: needs input norms"):
        WANDA.compress(W, Dense(W), LayerStats(), config)
    once = WANDA.compress(W, Dense(W), stats, config)
    with pytest.raises(ConfigError, match=r"wanda: an earlier step .* Prune once"):
        WANDA.compress(W, once, stats, config)


def test_a_pattern_that_does_not_divide_is_a_problem() -> None:
    assert WANDA.problem((4, 10), WandaConfig(pattern=NM(2, 4))) is not None
    assert WANDA.problem((4, 10), WandaConfig(pattern=Unstructured(0.5))) is None


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.7])
def test_one_share_of_its_total_cuts_every_row(sparsity: float) -> None:
    S = torch.rand(40, 300) ** 3
    kept = adaptive_mask(S, sparsity)
    assert float((~kept).double().mean()) == pytest.approx(sparsity, abs=0.005)
    removed = (~kept).sum(1).numpy()
    # Some alpha explains all rows: the least that removes as many, and one more would be too many.
    exact = S.double().numpy()
    lowest = max(adaptive_removals(row, n)[0] for row, n in zip(exact, removed, strict=True))
    highest = min(adaptive_removals(row, n)[1] for row, n in zip(exact, removed, strict=True))
    assert lowest <= highest
    assert lowest <= 0.8


def test_an_adaptive_row_loses_its_lowest_scores() -> None:
    S = torch.rand(8, 50)
    kept = adaptive_mask(S, 0.5)
    for row, stays in zip(S, kept, strict=True):
        assert row[~stays].max() < row[stays].min()


def test_rows_that_depend_on_few_weights_lose_more_of_them() -> None:
    even, peaked = torch.rand(1, 400) + 1, torch.rand(1, 400) ** 12
    kept = adaptive_mask(torch.cat([even, peaked]), 0.5)
    assert kept[1].sum() < kept[0].sum()


def test_scaling_a_row_leaves_its_adaptive_mask_unchanged() -> None:
    S = torch.rand(6, 64)
    factors = torch.tensor([0.25, 0.5, 1, 2, 4, 8])[:, None]
    assert torch.equal(adaptive_mask(S, 0.5), adaptive_mask(factors * S, 0.5))


def test_degenerate_scores_have_an_adaptive_mask() -> None:
    zeros = adaptive_mask(torch.zeros(4, 100), 0.5)
    equal = adaptive_mask(torch.full((4, 100), 0.3), 0.5)
    assert torch.equal(zeros, equal)
    # Ties keep the lower column, as everywhere.
    assert (equal == (torch.arange(100) < 50)).all()
    assert adaptive_mask(torch.rand(3, 1), 0.5).all()
    S = torch.rand(4, 100)
    S[1] = 0
    assert float(adaptive_mask(S, 0.5).double().mean()) == pytest.approx(0.5, abs=0.02)


def test_the_adaptive_threshold_is_an_option_of_unstructured_patterns_only() -> None:
    W, stats = torch.randn(20, 200), random_stats(200)
    config = registry.configure("wanda", {"pattern": "50%", "threshold": "adaptive"})
    assert isinstance(config, WandaConfig)
    weight = WANDA.compress(W, Dense(W), stats, config)
    assert stats.x_norm is not None
    expected = adaptive_mask(scores(W, stats.x_norm), 0.5)
    assert torch.equal(weight.dequantize(), W * expected)
    with pytest.raises(ConfigError, match="'adaptive' gives rows different sparsity, and 2:4"):
        registry.configure("wanda", {"pattern": "2:4", "threshold": "adaptive"})
