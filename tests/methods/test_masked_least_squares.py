"""methods/masked_least_squares.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.samples import random_mask
from tests.oracles.masked import best_kept, output_errors
from trinity.methods import masked_least_squares
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM
from trinity.methods.masked_least_squares import Gram, Solved, largest_eigenpairs, prepare, solve


def inputs(tokens: int, d_in: int, decay: float = 1.0) -> Tensor:
    """Correlated inputs: eigenvalues fall as j^-decay, channels differ by two orders of magnitude.

    -> [tokens, in], float64
    """
    basis = torch.linalg.qr(torch.randn(d_in, d_in, dtype=torch.float64))[0]
    spectrum = torch.arange(1, d_in + 1) ** (-decay / 2)
    X = torch.randn(tokens, d_in, dtype=torch.float64) * spectrum @ basis.T
    return X * torch.logspace(-1, 1, d_in, dtype=torch.float64)


def hessian(X: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 / len(X) * X.T @ X).to(dtype)


def solved(
    W: Tensor, mask: Tensor, H: Tensor, tolerance: float = 1e-3, gram: Gram | None = None
) -> Solved:
    return solve(gram or prepare(H), W, mask, W * mask, tolerance, 300)


def errors(found: Tensor, W: Tensor, X: Tensor) -> np.ndarray:
    return output_errors(found.double().numpy(), W.double().numpy(), X.numpy())


@pytest.mark.parametrize("decay", [0.0, 1.0, 3.0])
def test_float64_to_a_small_tolerance_is_the_dense_solution(decay: float) -> None:
    X = inputs(200, 32, decay)
    W, mask = torch.randn(12, 32, dtype=torch.float64), random_mask(12, 32, NM(2, 4))
    found = solved(W, mask, hessian(X, torch.float64), 1e-13)
    expected = best_kept(W.numpy(), mask.numpy(), X.numpy())
    # Small eigenvalues: weights may differ where outputs do not.
    least = errors(torch.from_numpy(expected), W, X)
    np.testing.assert_allclose(errors(found.w, W, X), least, rtol=1e-9)
    if decay < 3:
        np.testing.assert_allclose(found.w.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_every_row_is_as_near_its_minimum_as_the_tolerance_says(
    tolerance: float, decay: float
) -> None:
    X = inputs(300, 64, decay)
    W, mask = torch.randn(40, 64), random_mask(40, 64, NM(2, 4))
    found = solved(W, mask, hessian(X), tolerance)
    least = errors(torch.from_numpy(best_kept(W.double().numpy(), mask.numpy(), X.numpy())), W, X)
    assert found.converged.all()
    assert (errors(found.w, W, X) <= (1 + 1.01 * tolerance) * least / (1 - tolerance)).all()


@pytest.mark.parametrize("decay", [1.0, 2.0, 3.0])
def test_the_gap_bounds_the_distance_to_the_minimum_also_long_before_it(decay: float) -> None:
    X = inputs(300, 64, decay)
    W, mask = torch.randn(40, 64), random_mask(40, 64, NM(2, 4))
    H = hessian(X)
    gram = prepare(H)
    least = errors(torch.from_numpy(best_kept(W.double().numpy(), mask.numpy(), X.numpy())), W, X)
    above = []
    for iterations in (1, 2, 3):
        found = solve(gram, W, mask, W * mask, 1e-9, iterations)
        excess = errors(found.w, W, X) - least
        assert (excess <= 1.001 * found.gap.double().numpy() + 1e-6 * least).all()
        above.append(float(excess.sum()))
    assert above == sorted(above, reverse=True)
    assert above[0] > 1e-3 * least.sum()  # so that the bound was asked something


def test_masked_entries_are_zero_and_the_residual_vanishes_on_kept_ones() -> None:
    X, W, mask = inputs(200, 32), torch.randn(9, 32), random_mask(9, 32, NM(1, 4))
    H = hessian(X, torch.float64)
    found = solved(W.double(), mask, H, 1e-12)
    assert (found.w[~mask] == 0).all()
    gradient = (found.w - W.double()) @ H
    before = (W.double() * mask - W.double()) @ H
    assert gradient[mask].abs().max() < 1e-5 * before[mask].abs().max()


def test_a_diagonal_hessian_changes_no_weight() -> None:
    W, mask = torch.randn(6, 16), random_mask(6, 16, NM(2, 4))
    found = solved(W, mask, torch.diag(torch.rand(16) + 0.1))
    torch.testing.assert_close(found.w, W * mask, rtol=1e-6, atol=0)


def test_an_empty_mask_of_removed_weights_gives_the_target_back() -> None:
    W = torch.randn(6, 16)
    found = solved(W, torch.ones(6, 16, dtype=torch.bool), hessian(inputs(40, 16)))
    torch.testing.assert_close(found.w, W)


def test_removing_one_weight_more_never_lowers_the_minimum() -> None:
    X, W = inputs(200, 16), torch.randn(1, 16, dtype=torch.float64)
    mask, least = torch.ones(1, 16, dtype=torch.bool), []
    for j in torch.randperm(16):
        mask[0, j] = False
        least.append(float(solved(W, mask.clone(), hessian(X, torch.float64), 1e-10).error))
    assert np.diff(least).min() > -1e-9 * least[-1]


def test_scaling_the_inputs_changes_nothing() -> None:
    X, W, mask = inputs(200, 32), torch.randn(9, 32), random_mask(9, 32, NM(2, 4))
    H = hessian(X)
    quiet, loud = solved(W, mask, H), solved(W, mask, 2.0**20 * H)
    assert torch.equal(quiet.w, loud.w)
    torch.testing.assert_close(2.0**20 * quiet.gap, loud.gap)


def test_rows_do_not_depend_on_each_other() -> None:
    X, W, mask = inputs(200, 32, 2), torch.randn(150, 32), random_mask(150, 32, NM(2, 4))
    gram = prepare(hessian(X))
    together = solved(W, mask, hessian(X), 1e-5, gram)
    order = torch.randperm(150)
    other = solved(W[order], mask[order], hessian(X), 1e-5, gram)
    torch.testing.assert_close(other.error, together.error[order], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tokens", [1, 5, 20, 40])
def test_fewer_tokens_than_inputs_reach_the_minimum_that_there_is(tokens: int) -> None:
    X, W, mask = inputs(tokens, 64), torch.randn(20, 64), random_mask(20, 64, NM(2, 4))
    found = solved(W, mask, hessian(X))
    least = errors(torch.from_numpy(best_kept(W.double().numpy(), mask.numpy(), X.numpy())), W, X)
    dense = errors(torch.zeros_like(W), W, X)
    assert torch.isfinite(found.w).all()
    # Where the kept weights can fit everything, what is left is float32's rounding.
    assert (errors(found.w, W, X) <= 1.01 * least + 1e-6 * dense).all()


def test_dead_inputs_keep_their_weights() -> None:
    X, W, mask = inputs(200, 16), torch.randn(8, 16), random_mask(8, 16, NM(2, 4))
    X[:, [3, 7]] = 0
    found = solved(W, mask, hessian(X))
    assert torch.equal(found.w[:, [3, 7]], (W * mask)[:, [3, 7]])
    assert found.converged.all()


def test_inputs_that_are_all_dead_leave_every_weight() -> None:
    W, mask = torch.randn(8, 16), random_mask(8, 16, NM(2, 4))
    found = solved(W, mask, torch.zeros(16, 16))
    assert torch.equal(found.w, W * mask)
    assert found.converged.all()


def test_rows_that_bad_conditioning_leaves_over_finish_with_the_inverse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, W, mask = inputs(400, 64, 3), torch.randn(20, 64), random_mask(20, 64, NM(2, 4))
    monkeypatch.setattr(masked_least_squares, "SPIKED_ITERATIONS", 3)
    found = solved(W, mask, hessian(X))
    assert found.converged.all()
    assert found.iterations > 3
    least = errors(torch.from_numpy(best_kept(W.double().numpy(), mask.numpy(), X.numpy())), W, X)
    assert (errors(found.w, W, X) <= 1.002 * least).all()


def test_a_spiked_hessian_takes_fewer_iterations_than_it_has_spikes() -> None:
    # 8 large eigenvalues over a flat bulk: with a diagonal preconditioner, an iteration for each.
    basis = torch.linalg.qr(torch.randn(128, 128, dtype=torch.float64))[0]
    values = torch.ones(128, dtype=torch.float64)
    values[:8] = torch.logspace(2, 3, 8, dtype=torch.float64)
    H = (basis * values @ basis.T).float()
    W, mask = torch.randn(16, 128), random_mask(16, 128, NM(2, 4))
    found = solved(W, mask, H)
    assert found.converged.all()
    assert found.iterations < 8


def test_products_are_counted() -> None:
    X, W, mask = inputs(200, 32), torch.randn(16, 32), random_mask(16, 32, NM(2, 4))
    found = solved(W, mask, hessian(X))
    # Before and after: three a row; one for each iteration and for each check.
    assert 3 * 16 < found.row_products <= 16 * (3 + 2 * found.iterations)


def test_the_largest_eigenpairs_are_those_of_a_full_decomposition() -> None:
    H = hessian(inputs(500, 64, 2), torch.float64)
    values, V = largest_eigenpairs(H, 4)
    expected = np.linalg.eigvalsh(H.numpy())[::-1][:4]
    np.testing.assert_allclose(values.numpy(), expected, rtol=2e-2)
    torch.testing.assert_close(V.T @ V, torch.eye(4, dtype=torch.float64))


def test_the_inverse_is_that_of_the_scaled_hessian_with_its_ridge() -> None:
    H = hessian(inputs(500, 32))
    gram = prepare(H)
    torch.testing.assert_close(gram.scaled * gram.root * gram.root[:, None], H)
    product = (gram.scaled + gram.ridge * torch.eye(32)).double() @ gram.inverse.double()
    torch.testing.assert_close(product, torch.eye(32, dtype=torch.float64), atol=1e-2, rtol=0)
    assert gram.ridge < 1e-4


def test_a_matrix_that_is_no_sum_of_squares_is_refused() -> None:
    H = torch.ones(8, 8) - 3 * torch.eye(8)
    H.diagonal().fill_(0.1)
    with pytest.raises(ConfigError, match=r"H \[8, 8\] is not positive semidefinite"):
        prepare(H)


def test_the_start_is_where_the_result_is_and_nothing_else_is_changed() -> None:
    X, W, mask = inputs(200, 32), torch.randn(16, 32), random_mask(16, 32, NM(2, 4))
    gram = prepare(hessian(X))
    before = W.clone(), mask.clone(), replace(gram, scaled=gram.scaled.clone())
    start = W * mask
    found = solve(gram, W, mask, start, 1e-3, 300)
    assert found.w is start
    assert torch.equal(W, before[0])
    assert torch.equal(mask, before[1])
    assert torch.equal(gram.scaled, before[2].scaled)
