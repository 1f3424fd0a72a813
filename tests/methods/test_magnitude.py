"""methods/magnitude.py."""

import pytest
import torch

from tests.methods.samples import GridCase, random_quantized
from tests.oracles.pruning import best_group_masks
from trinity.methods import registry
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Sparse, Unstructured
from trinity.methods.magnitude import MAGNITUDE, MagnitudeConfig, compress, mask


def test_two_four_keeps_the_two_largest_of_every_four() -> None:
    W = torch.randn(5, 12)
    kept = mask(W, NM(2, 4))
    for row, places in zip(W.abs().double().numpy(), kept, strict=True):
        for start in range(0, 12, 4):
            found = tuple(places[start : start + 4].nonzero().flatten().tolist())
            assert found in best_group_masks(row[start : start + 4], 2, 4)


@pytest.mark.parametrize("sparsity", [0.01, 0.3, 0.5, 0.77, 0.99])
def test_unstructured_removes_exactly_the_smallest_of_the_whole_layer(sparsity: float) -> None:
    W = torch.randn(7, 11)
    kept = mask(W, Unstructured(sparsity))
    count = int(77 * sparsity)
    smallest = sorted(W.abs().flatten().tolist())[:count]
    assert sorted(W[~kept].abs().tolist()) == smallest


def test_ties_and_a_sparsity_below_one_weight_remove_no_more_than_asked() -> None:
    W = torch.ones(4, 4)
    assert int((~mask(W, Unstructured(0.5))).sum()) == 8
    assert mask(W, Unstructured(0.05)).all()


def test_rows_need_not_reach_the_same_sparsity() -> None:
    W = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert mask(W, Unstructured(0.5)).tolist() == [[False, False], [True, True]]


def test_the_sign_of_a_weight_does_not_matter() -> None:
    W = torch.randn(6, 8)
    for pattern in (NM(2, 4), Unstructured(0.5)):
        assert torch.equal(mask(W, pattern), mask(-W, pattern))


def test_kept_weights_are_bit_identical_and_the_input_is_unchanged() -> None:
    W = torch.randn(6, 8)
    before = W.clone()
    sparse = compress(W, Dense(W), MagnitudeConfig(pattern=NM(2, 4)))
    assert torch.equal(sparse.dequantize()[sparse.mask], W[sparse.mask])
    assert torch.equal(W, before)


def test_the_mask_is_that_of_the_original_weight_not_of_the_quantized_one() -> None:
    W, quantized = torch.randn(6, 8), random_quantized(6, 8, GridCase(2))
    sparse = compress(W, quantized, MagnitudeConfig(pattern=NM(2, 4)))
    assert torch.equal(sparse.mask, mask(W, NM(2, 4)))
    assert torch.equal(sparse.dequantize(), quantized.dequantize() * sparse.mask)


def test_a_transposed_weight_is_pruned_like_its_copy() -> None:
    W = torch.randn(8, 6).T
    for pattern in (NM(2, 4), Unstructured(0.5)):
        assert torch.equal(mask(W, pattern), mask(W.contiguous(), pattern))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_pruned_like_their_float32_values(dtype: torch.dtype) -> None:
    W = torch.randn(6, 8).to(dtype)
    for pattern in (NM(2, 4), Unstructured(0.5)):
        assert torch.equal(mask(W, pattern), mask(W.float(), pattern))


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (1, 1)], ids=str)
def test_a_single_row_or_column_is_pruned_too(shape: tuple[int, int]) -> None:
    kept = mask(torch.rand(shape) + 1, Unstructured(0.5))
    assert int((~kept).sum()) == shape[0] * shape[1] // 2


def test_pruning_twice_is_refused() -> None:
    W, config = torch.randn(4, 8), MagnitudeConfig(pattern=NM(2, 4))
    once = MAGNITUDE.compress(W, Dense(W), LayerStats(), config)
    assert isinstance(once, Sparse)
    with pytest.raises(ConfigError, match=r"magnitude: an earlier step .* Prune once"):
        MAGNITUDE.compress(W, once, LayerStats(), config)


def test_the_pattern_is_needed_and_checked_against_the_layer() -> None:
    with pytest.raises(ConfigError, match="method 'magnitude': needs the option pattern"):
        registry.configure("magnitude", {})
    config = registry.configure("magnitude", {"pattern": "4:8"})
    assert isinstance(config, MagnitudeConfig)
    assert MAGNITUDE.problem((4, 12), config) == "pattern 4:8 does not divide in = 12"
    assert MAGNITUDE.problem((4, 16), config) is None
