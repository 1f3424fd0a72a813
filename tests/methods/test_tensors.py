"""methods/tensors.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.methods.samples import (
    GridCase,
    indexed,
    random_mask,
    random_quantized,
    with_adapter,
)
from tests.oracles.low_rank import best_product, remaining_error, weighted_norm
from tests.oracles.pruning import best_group_masks
from tests.oracles.quantization import nearest_on_grid
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Quantized, Sparse, Unstructured
from trinity.methods.tensors import (
    MASKED_AT_ONCE,
    clipped,
    highest_kept,
    low_rank,
    lowest_removed,
    masked,
    nm_mask,
    pattern_problem,
    quantize,
    requantized,
)

PATTERNS = [NM(2, 4), NM(1, 4), NM(3, 4), NM(2, 8), NM(4, 8), NM(1, 2), NM(2, 3)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_group_keeps_the_best_of_all_its_masks(pattern: NM) -> None:
    scores = torch.rand(3, 4 * pattern.m)
    mask = nm_mask(scores, pattern)
    for row, kept in zip(scores.double().numpy(), mask, strict=True):
        for start in range(0, scores.shape[1], pattern.m):
            group = slice(start, start + pattern.m)
            places = tuple(kept[group].nonzero().flatten().tolist())
            assert places in best_group_masks(row[group], pattern.n, pattern.m)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_group_keeps_exactly_n(pattern: NM) -> None:
    mask = nm_mask(torch.randn(5, 6 * pattern.m), pattern)
    assert (mask.view(5, 6, pattern.m).sum(-1) == pattern.n).all()


def test_equal_scores_keep_the_lower_columns() -> None:
    expected = torch.tensor([[True, True, False, False]]).repeat(3, 2)
    assert torch.equal(nm_mask(torch.ones(3, 8), NM(2, 4)), expected)
    removed = lowest_removed(torch.ones(3, 8), 5)
    assert torch.equal(removed, torch.arange(8).expand(3, 8) < 3)


@pytest.mark.parametrize("count", range(8))
def test_ties_at_the_limit_keep_the_lower_columns_and_the_exact_count(count: int) -> None:
    scores = torch.tensor([[1.0, 0, 1, 2, 1, 1, 0], [5, 4, 3, 2, 1, 0, 6], [2, 2, 2, 2, 2, 2, 2]])
    mask = lowest_removed(scores, count)
    for row, kept in zip(scores.tolist(), mask.tolist(), strict=True):
        order = sorted(range(7), key=lambda j: (-row[j], j))
        assert [j in order[: 7 - count] for j in range(7)] == kept


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_highest_along_the_first_axis_are_kept_ties_the_first(n: int) -> None:
    scores = torch.randint(0, 3, (4, 5, 6)).float()
    kept = highest_kept(scores, n)
    for i in range(5):
        for j in range(6):
            order = sorted(range(4), key=lambda place: (-float(scores[place, i, j]), place))
            assert kept[:, i, j].nonzero().flatten().tolist() == sorted(order[:n])


def test_a_matrix_masked_in_parts_gets_the_mask_of_its_rows() -> None:
    scores = torch.rand(5, MASKED_AT_ONCE // 2)
    rows = torch.cat([nm_mask(row[None], NM(2, 4)) for row in scores])
    assert torch.equal(nm_mask(scores, NM(2, 4)), rows)


def test_a_pattern_that_does_not_divide_is_a_config_error_in_the_mask_too() -> None:
    with pytest.raises(ConfigError, match="2:4 does not divide in = 6"):
        nm_mask(torch.ones(3, 6), NM(2, 4))


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_exactly_the_lowest_scores_of_a_row_go(count: int) -> None:
    scores = torch.randn(4, 7)
    mask = lowest_removed(scores, count)
    for row, kept in zip(scores.tolist(), mask.tolist(), strict=True):
        gone = sorted(row)[:count]
        assert [value not in gone for value in row] == kept


def test_masks_of_transposed_scores_equal_those_of_their_copy() -> None:
    scores = torch.randn(8, 6).T
    assert torch.equal(nm_mask(scores, NM(2, 4)), nm_mask(scores.contiguous(), NM(2, 4)))
    assert torch.equal(lowest_removed(scores, 3), lowest_removed(scores.contiguous(), 3))


def test_a_pattern_is_a_problem_only_where_it_does_not_divide() -> None:
    assert pattern_problem((3, 8), NM(2, 4)) is None
    assert pattern_problem((3, 7), Unstructured(0.5)) is None
    assert pattern_problem((4, 10), NM(2, 4)) == "pattern 2:4 does not divide in = 10"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_no_point_of_the_grid_is_nearer_than_the_chosen_one(bits: int, asymmetric: bool) -> None:
    W, scale = 2 * torch.randn(4, 8), torch.rand(4, 2) / bits + 0.05
    low, high = (0, 2**bits - 1) if asymmetric else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    zero_point = torch.randint(0, high + 1, (4, 2), dtype=torch.uint8) if asymmetric else None
    decoded = quantize(W, scale, zero_point, bits).dequantize()
    for i in range(4):
        for j in range(8):
            zero = 0 if zero_point is None else int(zero_point[i, j // 4])
            best = nearest_on_grid(float(W[i, j]), float(scale[i, j // 4]), zero, low, high)
            # The distance of two float32 numbers of order one.
            assert abs(float(decoded[i, j] - W[i, j])) == pytest.approx(best, abs=5e-7)


def test_halves_round_to_even() -> None:
    W = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    codes = quantize(W, torch.ones(1, 1), None, 4).codes
    assert codes.tolist() == [[0, 2, 2, 0, -2, -2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_rounded_in_float32(dtype: torch.dtype) -> None:
    W, scale = torch.randn(4, 8).to(dtype), torch.full((1, 1), 0.3)
    assert torch.equal(quantize(W, scale, None, 4).codes, quantize(W.float(), scale, None, 4).codes)


def test_a_mask_goes_on_floats_or_codes_but_on_neither_mask_nor_adapter() -> None:
    pattern, mask = NM(2, 4), random_mask(4, 8, NM(2, 4))
    for base in (Dense(torch.randn(4, 8)), random_quantized(4, 8, GridCase(4))):
        sparse = masked(base, mask, pattern, "test")
        assert torch.equal(sparse.dequantize(), base.dequantize() * mask)
        with pytest.raises(ConfigError, match=r"test: an earlier step already made this .* sparse"):
            masked(sparse, mask, pattern, "test")
        with pytest.raises(ConfigError, match="already made this weight adapted"):
            masked(with_adapter(base, 1, torch.float32), mask, pattern, "test")


def test_codes_replace_floats_under_their_mask_but_not_other_codes() -> None:
    quantized, mask = random_quantized(4, 8, GridCase(4)), random_mask(4, 8, NM(2, 4))
    dense = Dense(torch.randn(4, 8))
    assert requantized(dense, quantized, "test") is quantized
    sparse = requantized(Sparse(dense, mask, NM(2, 4)), quantized, "test")
    assert isinstance(sparse, Sparse)
    assert isinstance(sparse.values, Quantized)
    assert torch.equal(sparse.mask, mask)
    for refused in (quantized, sparse, with_adapter(dense, 1, torch.float32)):
        with pytest.raises(ConfigError, match="test: an earlier step already quantized"):
            requantized(refused, quantized, "test")


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 5), (5, 1), (4, 4)], ids=str)
def test_low_rank_is_the_truncated_svd(shape: tuple[int, int]) -> None:
    E = torch.randn(shape)
    ones = np.ones(shape[1])
    for rank in range(1, min(shape) + 1):
        B, A = low_rank(E, rank)
        assert B.shape == (shape[0], rank)
        assert A.shape == (rank, shape[1])
        expected = best_product(E.double().numpy(), ones, rank)
        # A float32 SVD of numbers of order one.
        np.testing.assert_allclose((B @ A).double().numpy(), expected, atol=1e-5)


def test_what_low_rank_leaves_is_the_sum_of_the_other_singular_values() -> None:
    E, ones = torch.randn(6, 9), np.ones(9)
    for rank in range(1, 7):
        B, A = low_rank(E, rank)
        left = weighted_norm((E - B @ A).double().numpy(), ones)
        assert left == pytest.approx(remaining_error(E.double().numpy(), ones, rank), abs=1e-5)


def test_the_left_factor_has_orthonormal_columns() -> None:
    B, _ = low_rank(torch.randn(8, 6), 4)
    torch.testing.assert_close(B.T @ B, torch.eye(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scattered", [True, False])
def test_what_lies_on_a_grid_keeps_its_codes(symmetric: bool, scattered: bool) -> None:
    weight = random_quantized(5, 24, GridCase(4, symmetric, 3))
    if scattered:
        weight = indexed(weight, 5)
    weight = replace(weight, input_scale=torch.rand(24) + 0.5)
    found = weight.rounded(weight.dequantize())
    assert torch.equal(found.codes, weight.codes)
    assert found.grid == weight.grid


def test_clipping_cuts_the_largest_hundredth_to_the_smallest_among_them() -> None:
    X = torch.arange(-100.0, 100.0)[torch.randperm(200)].view(20, 10)
    assert torch.equal(clipped(X), X.clamp(-99, 99))  # two of 200: -100, and one of -99 and 99


def test_clipping_so_few_that_a_hundredth_is_none_changes_nothing() -> None:
    X = torch.randn(3, 5)
    assert torch.equal(clipped(X), X)
