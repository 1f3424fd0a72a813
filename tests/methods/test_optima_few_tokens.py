"""methods/optima.py where tokens are few: damping, and a held-out part that decides."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.optima_layers import degenerate, errors, inputs, least, pruned, run, stats_of
from tests.methods.samples import random_mask
from tests.oracles.masked import best_kept, output_errors
from trinity.methods.contract import LayerStats, Reported, Statistic, needed
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Sparse, Unstructured
from trinity.methods.optima import OPTIMA, OptimaConfig


def stats_with_held_out(X: Tensor, every: int = 4) -> tuple[LayerStats, Tensor, Tensor]:
    """Statistics of one-token sequences, the inputs that are solved on, and those held out."""
    held = torch.arange(len(X)) % every == 0
    whole, out = stats_of(X), X[held]
    stats = replace(whole, H_held_out=2 / len(out) * out.T @ out, tokens_held_out=len(out))
    return stats, X[~held], out


def damped_inputs(X: Tensor, damping: float) -> Tensor:
    """Inputs whose H is the damped one.  X: [tokens, in]  ->  [tokens + in, in]"""
    level = damping * float(X.double().square().sum(0).mean())
    return torch.cat([X, level**0.5 * torch.eye(X.shape[1])])


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_damping_solves_the_damped_problem(damping: float) -> None:
    W, X = torch.randn(10, 32), inputs(40, 32)
    current = pruned(W, X, NM(2, 4))
    weight, report = run(W, current, X, damping=damping, tolerance=1e-5)
    damped = damped_inputs(X, damping)
    assert (errors(weight, W, damped) <= (1 + 1e-4) * least(W, current.mask, damped)).all()
    undamped = run(W, current, X, tolerance=1e-5)[0]
    assert errors(undamped, W, damped).sum() > 1.001 * errors(weight, W, damped).sum()
    # What is reported, and what decides, is the error as it is.
    assert report["error_after"] < report["error_before"]
    assert (errors(weight, W, X) <= errors(current, W, X) * (1 + 1e-6)).all()
    assert "error_at_least" not in report


def test_more_damping_moves_the_weights_less() -> None:
    W, X = torch.randn(10, 32), inputs(40, 32)
    current = pruned(W, X, NM(2, 4))
    moved = [
        float((run(W, current, X, damping=damping)[0].dequantize() - W * current.mask).norm())
        for damping in (0.0, 0.1, 10.0)
    ]
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 0.2 * moved[0]


def test_rows_are_solved_on_the_rest_and_taken_by_what_was_held_out() -> None:
    torch.manual_seed(1)
    W, X = torch.randn(40, 32), inputs(48, 32)  # 36 tokens for 32 inputs: some rows overfit
    stats, rest, held_out = stats_with_held_out(X)
    mask = random_mask(40, 32, Unstructured(0.4))
    current = Sparse(Dense(W), mask, Unstructured(0.4))
    config = OptimaConfig(tolerance=1e-5, decides="held-out")
    made = OPTIMA.compress(W, current, stats, config)
    assert isinstance(made, Reported)
    solved = best_kept(W.double().numpy(), mask.numpy(), rest.double().numpy())
    judged = held_out.double().numpy()
    wanted = output_errors(solved, W.double().numpy(), judged) < errors(current, W, held_out)
    assert 0 < wanted.sum() < 40, "the oracle must want some rows and not others"
    expected = np.where(wanted[:, None], solved, (W * mask).double().numpy())
    np.testing.assert_allclose(made.weight.dequantize().numpy(), expected, atol=6e-2)
    assert made.details["rows_kept"] == 40 - wanted.sum()
    assert (errors(made.weight, W, held_out) <= errors(current, W, held_out) * (1 + 1e-5)).all()
    norm = errors(torch.zeros_like(W), W, held_out).sum()
    after = (errors(made.weight, W, held_out).sum() / norm) ** 0.5
    assert made.details["error_after"] == pytest.approx(after, rel=1e-4)


@pytest.mark.parametrize(("W", "X"), list(degenerate()))
def test_degenerate_layers_have_a_result_no_worse_on_what_was_held_out(
    W: Tensor, X: Tensor
) -> None:
    if len(X) < 2:
        pytest.skip("one token cannot be held out and solved on")
    stats, _, held_out = stats_with_held_out(X)
    pattern = NM(2, 4) if W.shape[1] > 1 else Unstructured(0.5)
    current = Sparse(Dense(W), random_mask(W.shape[0], W.shape[1], pattern), pattern)
    config = OptimaConfig(decides="held-out", damping=0.1)
    made = OPTIMA.compress(W, current, stats, config)
    assert isinstance(made, Reported)
    assert torch.isfinite(made.weight.dequantize()).all()
    before = errors(current, W, held_out).sum()
    assert errors(made.weight, W, held_out).sum() <= before * (1 + 1e-5)


def test_a_held_out_part_is_asked_for_only_where_it_decides() -> None:
    assert Statistic.HELD_OUT not in needed(OPTIMA, OptimaConfig())
    assert Statistic.HELD_OUT in needed(OPTIMA, OptimaConfig(decides="held-out"))


@pytest.mark.parametrize("tokens", [1, 0])
def test_too_few_sequences_to_hold_one_out_are_refused(tokens: int) -> None:
    W, X = torch.randn(4, 16), inputs(1, 16)
    H = 2 * X.T @ X
    stats = LayerStats(tokens=1, H=H, H_held_out=H if tokens else None, tokens_held_out=tokens)
    current = Sparse(Dense(W), random_mask(4, 16, NM(2, 4)), NM(2, 4))
    with pytest.raises(ConfigError, match=r"too few \(1 tokens.*more calibration.samples"):
        OPTIMA.compress(W, current, stats, OptimaConfig(decides="held-out"))
