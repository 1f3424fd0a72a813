"""methods/solve.py and LayerStats.shared."""

import numpy as np
import pytest
import torch

from tests.methods.hessians import exact, inputs, stats_of
from tests.oracles.feedback import damped, removal_costs
from trinity.methods import solve
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.solve import Factor, FeedbackConfig, factor

DOUBLE = FeedbackConfig(precision="float64")


def factor_of(stats: LayerStats, width: int, config: FeedbackConfig = DOUBLE) -> Factor:
    return factor(stats, config, width, act_order=False, method="test")


def upper(found: Factor) -> torch.Tensor:
    """V, put together from one panel that holds all inputs."""
    (within,) = found.within
    U = within.T * (1 / found.strength)[:, None]
    return torch.linalg.inv(U)


def test_the_factor_multiplies_to_the_damped_hessian() -> None:
    stats = stats_of(inputs(100, 40))
    V = upper(factor_of(stats, 40))
    assert stats.H is not None
    expected = damped(exact(stats.H), 0.01)
    np.testing.assert_allclose((V @ V.T).numpy(), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(V.triu(), V) or (V.tril(-1).abs().max() < 1e-12)


def test_its_inverse_is_the_papers_upper_factor_of_the_inverse_hessian() -> None:
    stats = stats_of(inputs(100, 40))
    U = torch.linalg.inv(upper(factor_of(stats, 40)))
    assert stats.H is not None
    product = (U.T @ U).numpy() @ damped(exact(stats.H), 0.01)
    np.testing.assert_allclose(product, np.eye(40), atol=1e-9)


@pytest.mark.parametrize("width", [8, 16, 40])
def test_strength_is_the_cost_of_removal_whatever_the_panels(width: int) -> None:
    stats = stats_of(inputs(100, 40))
    assert stats.H is not None
    costs = removal_costs(damped(exact(stats.H), 0.01))
    np.testing.assert_allclose(factor_of(stats, width).strength.numpy() ** 2, costs, rtol=1e-9)


def test_act_order_takes_inputs_by_falling_diagonal_before_damping() -> None:
    stats = stats_of(inputs(100, 24))
    assert stats.H is not None
    found = factor(stats, DOUBLE, 24, act_order=True, method="test")
    assert found.order is not None
    diagonal = stats.H.diagonal()[found.order]
    assert (diagonal[1:] <= diagonal[:-1]).all()
    V = upper(found)
    expected = damped(exact(stats.H), 0.01)[np.ix_(found.order.numpy(), found.order.numpy())]
    np.testing.assert_allclose((V @ V.T).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_linears_with_one_input_share_one_factorization(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = torch.linalg.cholesky_ex

    def counting(A: torch.Tensor, *, upper: bool = False):  # type: ignore[no-untyped-def]
        made.append(len(A))
        return real(A, upper=upper)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counting)
    stats, other = stats_of(inputs(50, 16)), stats_of(inputs(50, 16))
    assert factor_of(stats, 8) is factor_of(stats, 8)
    assert made == [16]
    factor_of(other, 8)
    factor_of(stats, 8, FeedbackConfig(precision="float64", damping=0.1))
    assert made == [16] * 3
    stats.forget()
    factor_of(stats, 8)
    assert made == [16] * 4


def test_a_hessian_of_too_few_tokens_without_damping_is_refused_with_advice() -> None:
    stats = stats_of(inputs(4, 32))
    with pytest.raises(ConfigError, match=r"H \[32, 32\] is not positive.*had 4.*raise test\.damp"):
        factor_of(stats, 32, FeedbackConfig(damping=0))


def test_missing_statistics_are_refused() -> None:
    with pytest.raises(ConfigError, match="test: needs input statistics"):
        factor_of(LayerStats(), 32)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_are_exact_meanwhile_and_the_setting_is_restored(precision: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with solve.exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("units", "size"),
    [((1,), 7), ((4,), 16), ((128,), 128), ((16, 4), 40), ((24,), 50), ((6, 3), 18)],
)
def test_every_error_moves_every_later_column_once_and_units_are_up_to_date(
    units: tuple[int, ...], size: int
) -> None:
    moved = np.zeros((size, size), dtype=int)  # [column, error]
    for done in range(size):
        for unit in (*units, 1):
            if done % unit == 0:
                assert (moved[done : done + unit, :done] == 1).all()
        if done:
            assert (moved[done, :done] == 1).all()
        if done + 1 < size:
            first, last = solve._closed_run(done + 1, units, size)
            moved[done + 1 : last, first : done + 1] += 1
    assert (moved[np.triu_indices(size)] == 0).all()
    assert (moved[np.tril_indices(size, -1)] == 1).all()
