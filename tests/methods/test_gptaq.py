"""methods/gptaq.py."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.hessians import exact, inputs
from tests.methods.samples import random_mask
from tests.oracles import feedback
from trinity.methods import gptaq, solve
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, CompressedWeight, Dense, Sparse
from trinity.methods.gptaq import GPTAQ, GptaqConfig
from trinity.methods.gptq import GPTQ, GptqConfig

DOUBLE: dict[str, Any] = {"precision": "float64", "scale_dtype": "float32"}
DAMPING = 0.01


def streams(tokens: int = 96, d_in: int = 48, apart: float = 0.3) -> tuple[Tensor, Tensor]:
    """Inputs of the compressed model, and of the dense one at the same tokens."""
    X = inputs(tokens, d_in)
    return X, X + apart * inputs(tokens, d_in)


def stats_of(X: Tensor, dense: Tensor, dtype: torch.dtype = torch.float32) -> LayerStats:
    """The statistics, summed in float64 so that only the method is judged."""
    now, before = X.double(), dense.double()
    return LayerStats(
        tokens=len(X),
        H=(2 / len(X) * now.T @ now).to(dtype),
        H_drift=(2 / len(X) * (before - now).T @ now).to(dtype),
    )


def compressed(
    W: Tensor, stats: LayerStats, current: CompressedWeight | None = None, **options: Any
) -> CompressedWeight:
    config = GptaqConfig.model_validate({"group_size": 16, "share": 1.0, **options})
    return GPTAQ.compress(W, current or Dense(W), stats, config)


def by_input(
    W: feedback.Array, stats: LayerStats, decide: feedback.Decide, share: float = 1.0
) -> feedback.Array:
    """Column by column: those after it are the least squares of its rounding and of its drift.

    After column j is stored as q, the others move by the least of |M X_later + (q - w) x_j - share
    w d_j|: one dense solve of the normal equations, H damped.
    """
    assert stats.H is not None
    assert stats.H_drift is not None
    H, C = feedback.damped(exact(stats.H), DAMPING), share * exact(stats.H_drift)
    current, stored = W.copy(), np.zeros_like(W)
    for j in range(W.shape[1]):
        w, q = current[:, j].copy(), decide(j, current)
        later = slice(j + 1, None)
        sides = np.outer(w - q, H[j, later]) + np.outer(w, C[j, later])
        current[:, later] += np.linalg.solve(H[later, later], sides.T).T
        stored[:, j] = q
    return stored


@pytest.mark.parametrize("panel", [8, 128])
@pytest.mark.parametrize(
    ("group", "fit"), [(16, "compensated"), (16, "static"), ("channel", "reference")]
)
def test_it_equals_one_least_squares_solve_a_column(
    group: int | str, fit: str, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solve, "PANEL", panel)
    W, stats = torch.randn(6, 48), stats_of(*streams())
    dense = exact(W)
    seen = (lambda j, now: now) if fit == "compensated" else (lambda j, now: dense)
    rule = feedback.grid_rule(3, group if isinstance(group, int) else 48, seen)
    found = compressed(W, stats, bits=3, group_size=group, group_fit=fit, **DOUBLE)
    expected = by_input(dense, stats, rule)
    np.testing.assert_allclose(found.dequantize().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_share_and_another_order_of_settling() -> None:
    W, stats = torch.randn(6, 48), stats_of(*streams())
    assert stats.H is not None
    assert stats.H_drift is not None
    order = stats.H.diagonal().argsort(descending=True, stable=True)
    turned = LayerStats(
        tokens=stats.tokens,
        H=stats.H[order][:, order],
        H_drift=stats.H_drift[order][:, order],
    )
    dense = exact(W[:, order])
    rule = feedback.grid_rule(3, 48, lambda j, now: dense)
    expected = by_input(dense, turned, rule, share=0.25)
    options = {"bits": 3, "group_size": "channel", "act_order": True, "share": 0.25}
    found = compressed(W, stats, **options, **DOUBLE)
    np.testing.assert_allclose(found.dequantize()[:, order].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("act_order", [False, True])
def test_the_whole_correction_is_the_least_squares_fit_to_the_outputs_of_the_dense_model(
    act_order: bool,
) -> None:
    """Oracle: the weight that minimizes |W' X - W X~| over all tokens, by lstsq in float64."""
    W, (X, dense) = torch.randn(6, 48), streams()
    stats = stats_of(X, dense, torch.float64)
    config = GptaqConfig.model_validate(
        {"residual": "whole", "share": 1.0, "damping": 0.0, "act_order": act_order, **DOUBLE}
    )
    found = solve.factor(stats, config, 16, act_order=act_order, method="gptaq")
    added = gptaq.moves(stats, found, config)
    moved = gptaq.corrected(W.T.double(), added, found.order).T.numpy()
    outputs = exact(dense) @ exact(W).T
    best, *_ = np.linalg.lstsq(exact(X), outputs, rcond=None)
    np.testing.assert_allclose(moved, best.T, rtol=1e-8, atol=1e-8)
    error = np.linalg.norm(exact(X) @ moved.T - outputs)
    generator = np.random.default_rng(0)
    for _ in range(5):
        other = moved + 0.01 * generator.standard_normal(moved.shape)
        assert error < np.linalg.norm(exact(X) @ other.T - outputs)


@pytest.mark.parametrize("residual", ["by-input", "whole"])
def test_without_a_drift_or_a_share_of_it_it_is_gptq(residual: str) -> None:
    W, (X, dense) = torch.randn(6, 48), streams()
    config = GptqConfig.model_validate({"bits": 3, "group_size": 16})
    expected = GPTQ.compress(W, Dense(W), stats_of(X, X), config).dequantize()
    same = compressed(W, stats_of(X, X), bits=3, residual=residual).dequantize()
    none = compressed(W, stats_of(X, dense), bits=3, residual=residual, share=0).dequantize()
    assert torch.equal(same, expected)
    assert torch.equal(none, expected)


@pytest.mark.parametrize("residual", ["by-input", "whole"])
def test_outputs_are_closer_to_those_of_the_dense_model_than_with_gptq(residual: str) -> None:
    W, X = torch.randn(32, 64), inputs(512, 64)
    dense = X + X @ torch.randn(64, 64) / 50  # what is no function of X, nothing can make up for
    stats = stats_of(X, dense)
    config = GptqConfig.model_validate({"bits": 4, "group_size": 16})
    plain = GPTQ.compress(W, Dense(W), stats, config).dequantize()
    found = compressed(W, stats, bits=4, residual=residual).dequantize()
    outputs = dense @ W.T
    assert (X @ found.T - outputs).norm() < 0.97 * (X @ plain.T - outputs).norm()


def through_two_layers(order: str) -> tuple[float, float]:
    """How far a block of two linears is from the dense model, before and after, both whole.

    Rounding to 8 bits is next to nothing: what is left is the drift.
    """
    first, second = torch.randn(64, 64) / 8, torch.randn(64, 64) / 8
    X = inputs(512, 64)
    dense = X + X @ torch.randn(64, 64) / 50
    options = {"bits": 8, "group_size": "channel", "residual": "whole"}
    Q1 = compressed(first, stats_of(X, dense), **options).dequantize()
    now = X @ (first if order == "block" else Q1).T  # what calibrates the second layer
    Q2 = compressed(second, stats_of(now, dense @ first.T), **options).dequantize()
    outputs = dense @ first.T @ second.T
    before = float((X @ first.T @ second.T - outputs).norm())
    return before, float((X @ Q1.T @ Q2.T - outputs).norm())


def test_input_by_input_the_drift_is_made_up_for_once() -> None:
    before, after = through_two_layers("true-sequential")
    assert after < 0.2 * before


def test_on_the_uncompressed_block_every_layer_makes_up_for_the_same_drift_again() -> None:
    """What the first layer made up for is in the statistics of the second still: it overshoots by
    as much as was missing before.
    """
    before, after = through_two_layers("block")
    assert after > 0.7 * before


def test_a_mask_stays() -> None:
    W, stats = torch.randn(6, 48), stats_of(*streams())
    mask = random_mask(6, 48, NM(2, 4))
    found = compressed(W, stats, Sparse(Dense(W), mask, NM(2, 4)), bits=4)
    assert isinstance(found, Sparse)
    assert bool((found.dequantize()[~mask] == 0).all())


def test_without_the_dense_stream_it_says_what_is_missing() -> None:
    W, X = torch.randn(6, 48), inputs(96, 48)
    H = 2 / 96 * X.T @ X
    with pytest.raises(ConfigError, match="gptaq: needs the inputs of both models"):
        compressed(W, LayerStats(tokens=96, H=H))
