"""methods/box_qp.py."""

import numpy as np
import pytest
import torch

from tests.methods.samples import random_mask
from tests.oracles.masked import best_in_box
from trinity.methods.box_qp import largest_eigenvalue, solve
from trinity.methods.formats import NM

INF = torch.inf


def problem(d_in: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs [tokens, in], and a box for each of 5 rows: half of the entries bounded."""
    X = torch.randn(60, d_in, dtype=torch.float64) @ torch.randn(d_in, d_in, dtype=torch.float64)
    free = random_mask(5, d_in, NM(2, 4))
    low = torch.randn(5, d_in, dtype=torch.float64)
    return X, torch.where(free, -INF, low), torch.where(free, INF, low + 0.1)


def test_a_small_tolerance_gives_the_bounded_least_squares_solution() -> None:
    X, lower, upper = problem()
    found = solve(X.T @ X, lower, upper, 1e-10, 200_000)
    assert found.optimal.all()
    for row, low, high in zip(found.d, lower, upper, strict=True):
        expected = best_in_box(X.numpy(), low.numpy(), high.numpy())
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_the_objective_is_off_by_no_more_than_the_tolerance_allows(tolerance: float) -> None:
    X, lower, upper = problem()
    Q = X.T @ X
    found = solve(Q, lower, upper, tolerance, 100_000)
    exact = solve(Q, lower, upper, 1e-12, 400_000)
    value = ((found.d @ Q) * found.d).sum(1) / 2
    best = ((exact.d @ Q) * exact.d).sum(1) / 2
    assert found.optimal.all()
    assert (value >= best - 1e-9).all()
    # The dual value is no proof here, so a factor: the gap is measured at the iterate itself.
    assert (value - best <= 10 * tolerance * (1 + value)).all()


def test_every_iterate_is_in_the_box() -> None:
    X, lower, upper = problem()
    found = solve((X.T @ X).float(), lower.float(), upper.float(), 1e-12, 7)
    assert (found.d >= lower.float() - 1e-6).all()
    assert (found.d <= upper.float() + 1e-6).all()
    assert found.iterations == 7


def test_the_tolerance_is_absolute_too_so_small_problems_end_at_once() -> None:
    X, lower, upper = problem()
    large = solve(X.T @ X, lower, upper, 1e-2, 100_000)
    small = solve(1e-8 * X.T @ X, lower, upper, 1e-2, 100_000)
    assert small.iterations == 0 < large.iterations


def test_a_row_that_did_not_converge_says_so() -> None:
    X, lower, upper = problem()
    assert not solve(X.T @ X, lower, upper, 1e-12, 3).optimal.any()


def test_dead_variables_stay_where_they_are_nearest_to_zero() -> None:
    X, lower, upper = problem()
    X[:, 2] = 0
    found = solve(X.T @ X, lower, upper, 1e-6, 100_000)
    expected = torch.zeros(5, dtype=torch.float64).clamp(lower[:, 2], upper[:, 2])
    torch.testing.assert_close(found.d[:, 2], expected)


def test_power_iteration_finds_the_largest_eigenvalue() -> None:
    X, _, _ = problem(20)
    Q = X.T @ X
    assert largest_eigenvalue(Q) == pytest.approx(float(torch.linalg.eigvalsh(Q)[-1]), rel=0.02)
    assert largest_eigenvalue(torch.zeros(3, 3)) == 1
