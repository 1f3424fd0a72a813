"""methods/training/lamb.py and kfac.py: what MKOR is compared with, against float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trinity.methods.errors import ConfigError
from trinity.methods.training.kfac import Kfac, KfacOptions, damped_inverses
from trinity.methods.training.lamb import Lamb, trust_ratio


def test_lambs_steps_are_those_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(4, 3, generator=generator))
    lamb = Lamb([w], lr=0.1, weight_decay=0.02)
    by_hand = w.detach().double().numpy().copy()
    m, v = np.zeros((4, 3)), np.zeros((4, 3))
    for step in range(1, 6):
        w.grad = torch.randn(4, 3, generator=generator)
        g = w.grad.double().numpy()
        lamb.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-6) + 0.02 * by_hand
        by_hand = by_hand - 0.1 * np.linalg.norm(by_hand) / np.linalg.norm(u) * u
        np.testing.assert_allclose(w.detach().numpy(), by_hand, rtol=1e-4, atol=1e-6)


def test_what_starts_at_zero_moves() -> None:
    assert float(trust_ratio(torch.zeros(3), torch.ones(3))) == 1
    b = nn.Parameter(torch.zeros(3))
    b.grad = torch.ones(3)
    Lamb([b]).step()
    assert bool((b != 0).all())


def test_kfac_preconditions_with_the_inverses_of_the_damped_second_moments() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(5, 4)
    base = torch.optim.SGD(linear.parameters(), lr=1.0)
    kfac = Kfac(linear, base, KfacOptions(damping=0.01))
    x, y = torch.randn(7, 5), torch.randn(7, 4)
    before = torch.cat([linear.weight, linear.bias[:, None]], 1).detach().double().numpy()
    error = linear(x) - y
    error.square().sum(1).mean().backward()
    kfac.step()
    after = torch.cat([linear.weight, linear.bias[:, None]], 1).detach().double().numpy()

    a = np.concatenate([x.double().numpy(), np.ones((7, 1))], 1)
    g = 2 * error.detach().double().numpy()  # of each token's own loss
    A, G, dW = a.T @ a / 7, g.T @ g / 7, g.T @ a / 7
    pi = np.sqrt(np.trace(A) / 6 / (np.trace(G) / 4))
    step = np.linalg.inv(G + 0.1 / pi * np.eye(4)) @ dW @ np.linalg.inv(A + 0.1 * pi * np.eye(6))
    step *= np.linalg.norm(dW) / np.linalg.norm(step)
    np.testing.assert_allclose(before - after, step, rtol=1e-3, atol=1e-5)


def test_factors_are_running_means_and_wait_for_their_interval() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 2, bias=False)
    kfac = Kfac(
        linear, torch.optim.SGD(linear.parameters(), lr=0.0), KfacOptions(decay=0.5, interval=2)
    )
    seen = []
    for _ in range(4):
        x = torch.randn(6, 3)
        seen.append((x.T @ x / 6).double())
        linear(x).square().mean().backward()
        kfac.step()
    ((A, _),) = kfac.factors.values()
    torch.testing.assert_close(A.double(), 0.5 * seen[0] + 0.5 * seen[2], rtol=1e-5, atol=1e-6)
    kfac.close()
    assert not linear._forward_hooks


def test_damped_inverses_are_symmetric_positive_also_of_zeros() -> None:
    found = damped_inverses(torch.zeros(3, 3), torch.eye(2), 1e-4)
    for inverse in found:
        assert bool((torch.linalg.eigvalsh(inverse) > 0).all())


def test_both_refuse_closures_and_models_without_linears() -> None:
    w = nn.Parameter(torch.ones(2))
    calls: list[Any] = [Lamb([w])]
    linear = nn.Linear(2, 2)
    calls.append(Kfac(linear, torch.optim.SGD(linear.parameters(), lr=0.1)))
    for optimizer in calls:
        with pytest.raises(ConfigError, match="takes no closure"):
            optimizer.step(lambda: 0.0)
    with pytest.raises(ConfigError, match=r"no nn\.Linear"):
        Kfac(nn.LayerNorm(3), torch.optim.SGD([w], lr=0.1))
