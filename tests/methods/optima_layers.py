"""Layers that OPTIMA is tried on, and what the best weights of a mask are, in float64."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracles.masked import best_kept, output_errors
from trinity.methods import wanda
from trinity.methods.contract import LayerStats, Reported
from trinity.methods.formats import CompressedWeight, Dense, Pattern, Sparse, Values
from trinity.methods.optima import OPTIMA, OptimaConfig


def inputs(tokens: int, d_in: int) -> Tensor:
    """Correlated inputs whose channels differ in size.  -> [tokens, in]"""
    mixed = torch.randn(tokens, d_in) @ (torch.eye(d_in) + 0.5 * torch.randn(d_in, d_in))
    return mixed * torch.logspace(-0.5, 0.5, d_in)


def stats_of(X: Tensor) -> LayerStats:
    return LayerStats(
        tokens=len(X),
        x_norm=X.square().sum(0).sqrt(),
        x_mean_abs=X.abs().mean(0),
        H=2 / len(X) * X.T @ X,
    )


def pruned(W: Tensor, X: Tensor, pattern: Pattern, base: Values | None = None) -> Sparse:
    x_norm = X.square().sum(0).sqrt()
    return wanda.compress(W, base or Dense(W), x_norm, wanda.WandaConfig(pattern=pattern))


def run(
    W: Tensor, current: CompressedWeight, X: Tensor, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """The weight and what the method says of it, at a tolerance that oracles can tell from none."""
    config = OptimaConfig.model_validate({"tolerance": 1e-3, **options})
    made = OPTIMA.compress(W, current, stats_of(X), config)
    assert isinstance(made, Reported)
    return made.weight, dict(made.details)


def errors(weight: CompressedWeight | Tensor, W: Tensor, X: Tensor) -> np.ndarray:
    """Of each row, in float64, by the outputs."""
    values = weight if isinstance(weight, Tensor) else weight.dequantize()
    return output_errors(values.double().numpy(), W.double().numpy(), X.double().numpy())


def least(W: Tensor, mask: Tensor, X: Tensor) -> np.ndarray:
    best = best_kept(W.double().numpy(), mask.numpy(), X.double().numpy())
    return output_errors(best, W.double().numpy(), X.double().numpy())


def degenerate() -> Iterator[Any]:
    """(weight, inputs) of every kind that a model may hold."""
    torch.manual_seed(0)
    dead, zero_rows = inputs(100, 16), torch.randn(6, 16)
    dead[:, [2, 9]], zero_rows[[0, 3]] = 0, 0
    W, X = torch.randn(6, 16), inputs(100, 16)
    yield pytest.param(W, dead, id="dead inputs")
    yield pytest.param(zero_rows, X, id="rows of zeros")
    yield pytest.param(torch.zeros(6, 16), X, id="zeros")
    yield pytest.param(torch.full((6, 16), 0.25), X, id="constant")
    yield pytest.param(W, inputs(5, 16), id="fewer tokens than inputs")
    yield pytest.param(W, inputs(1, 16), id="one token")
    yield pytest.param(W, torch.zeros(4, 16), id="no input at all")
    yield pytest.param(W[:1], X, id="one row")
    yield pytest.param(W[:, :1], X[:, :1], id="one column")
    yield pytest.param(1e-6 * W, 1e-6 * X, id="tiny numbers")
    yield pytest.param(1e4 * W, 1e3 * X, id="large numbers")
