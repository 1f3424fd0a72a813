"""methods/training/slope.py: the three products, the masks and the optimiser of SLoPe."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.oracles import slope as oracle
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM
from trinity.methods.training.slope import (
    AdamW,
    SparseMoments,
    adapted,
    double_mask,
    double_pruned,
    extra_sparsity,
    magnitude_mask,
    new_adapter,
    random_mask,
)

TWO_FOUR = NM(2, 4)
PATTERNS = [NM(1, 2), NM(2, 4), NM(2, 8), NM(1, 4)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_both_masks_keep_exactly_n_of_every_m_inputs(pattern: NM) -> None:
    W = torch.randn(16, 32)
    for mask in (random_mask((16, 32), pattern, generator()), magnitude_mask(W, pattern)):
        assert set(mask.view(16, -1, pattern.m).sum(-1).unique().tolist()) == {pattern.n}


def test_a_random_mask_is_the_seeds_and_every_choice_is_equally_likely() -> None:
    mask = random_mask((1000, 40), TWO_FOUR, generator(1))
    assert torch.equal(mask, random_mask((1000, 40), TWO_FOUR, generator(1)))
    assert not torch.equal(mask, random_mask((1000, 40), TWO_FOUR, generator(2)))
    codes = (mask.view(-1, 4) * torch.tensor([1, 2, 4, 8])).sum(-1)
    counts = torch.bincount(codes)
    found = counts[counts > 0]
    assert len(found) == 6
    # 10,000 groups over 6 choices: a standard deviation is 37.
    assert (found - 10_000 / 6).abs().max() < 4 * 37.3


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_double_mask_is_a_subset_with_at_most_n_of_every_m_outputs(pattern: NM) -> None:
    W = torch.randn(32, 16)
    R = random_mask((32, 16), pattern, generator())
    RC = double_mask(W, R, pattern)
    assert not bool((RC & ~R).any())
    assert int(RC.T.reshape(16, -1, pattern.m).sum(-1).max()) <= pattern.n


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_no_other_choice_of_outputs_keeps_more_magnitude(pattern: NM) -> None:
    W = torch.randn(16, 8)
    R = random_mask((16, 8), pattern, generator())
    kept = (W * double_mask(W, R, pattern)).double().abs().sum(0).numpy()
    for column in range(8):
        values = (W * R)[:, column].double().numpy()
        assert kept[column] == pytest.approx(oracle.best_columns(values, pattern.n, pattern.m))


@pytest.mark.parametrize("pattern", [*PATTERNS, NM(4, 8)], ids=str)
def test_extra_sparsity_is_the_count_over_all_outcomes(pattern: NM) -> None:
    expected = oracle.expected_loss(pattern.n, pattern.m)
    assert extra_sparsity(pattern) == pytest.approx(float(expected), rel=1e-12)


def test_extra_sparsity_is_what_the_paper_prints_for_1_2_and_2_4() -> None:
    assert extra_sparsity(NM(1, 2)) == 0.125
    assert extra_sparsity(NM(2, 4)) == 0.09375


@pytest.mark.parametrize("pattern", [NM(1, 2), NM(2, 4), NM(2, 8)], ids=str)
@pytest.mark.parametrize("scale", ["equal rows", "heavy tails"])
def test_random_masks_lose_what_the_formula_says_whatever_the_magnitudes(
    pattern: NM, scale: str
) -> None:
    W = torch.randn(512, 512)
    if scale == "heavy tails":
        W = W**5
    R = random_mask((512, 512), pattern, generator())
    lost = float((R & ~double_mask(W, R, pattern)).float().mean())
    # 512 * 512 / m column groups, each losing less than 1 of m: far below 1e-3 of spread.
    assert lost == pytest.approx(extra_sparsity(pattern), abs=2e-3)


def test_outputs_that_no_group_divides_are_an_error() -> None:
    with pytest.raises(ConfigError, match="out = 6 is not a multiple of 4"):
        double_mask(torch.ones(6, 8), torch.ones(6, 8, dtype=torch.bool), TWO_FOUR)


def _products(exact: bool) -> tuple[torch.Tensor, ...]:
    """x, W, R, RC, and output and gradients of sum(y * g)."""
    torch.manual_seed(3)
    x = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    R = random_mask((8, 16), TWO_FOUR, generator())
    W = (torch.randn(8, 16, dtype=torch.float64) * R).requires_grad_()
    RC = R if exact else double_mask(W, R, TWO_FOUR)
    g = torch.randn(2, 3, 8, dtype=torch.float64)
    y = double_pruned(x, W, R, RC)
    (y * g).sum().backward()
    assert x.grad is not None
    assert W.grad is not None
    return x, W, R, RC, g, y, x.grad, W.grad


def test_the_forward_pass_does_not_see_the_second_mask() -> None:
    x, W, _, _, _, y, _, _ = _products(exact=False)
    expected = oracle.layer_output(x.detach().view(-1, 16).numpy(), W.detach().numpy())
    np.testing.assert_allclose(y.detach().view(-1, 8).numpy(), expected, rtol=1e-12)


def test_gradients_are_exact_when_the_second_mask_covers_the_first() -> None:
    x, W, R, _, g, _, dx, dW = _products(exact=True)
    plain_x, plain_W = x.detach().requires_grad_(), W.detach().requires_grad_()
    ((plain_x @ (plain_W * R).T) * g).sum().backward()
    torch.testing.assert_close(dx, plain_x.grad)
    torch.testing.assert_close(dW, plain_W.grad)


def test_the_input_gradient_goes_through_the_double_pruned_weight() -> None:
    _, W, _, RC, g, _, dx, _ = _products(exact=False)
    pruned = (W.detach() * RC).numpy()
    expected = oracle.layer_output(g.view(-1, 8).numpy(), pruned.T)
    np.testing.assert_allclose(dx.view(-1, 16).numpy(), expected, rtol=1e-12)


def test_the_weight_gradient_ignores_the_second_mask_and_is_zero_outside_the_first() -> None:
    x, _, R, _, g, _, _, dW = _products(exact=False)
    expected = np.zeros((8, 16))
    for token_x, token_g in zip(x.detach().view(-1, 16), g.view(-1, 8), strict=True):
        expected += np.outer(token_g.numpy(), token_x.numpy())
    np.testing.assert_allclose(dW.numpy(), expected * R.numpy(), rtol=1e-12)


def test_a_new_adapter_changes_nothing() -> None:
    x, y = torch.randn(3, 16), torch.randn(3, 8)
    left, right = new_adapter((8, 16), 4, generator())
    assert torch.equal(adapted(x, y, left, right), y)
    assert left.std() == pytest.approx(1.0, abs=0.3)


def test_the_adapter_sees_the_whole_batch_and_is_divided_by_its_rank() -> None:
    """The accuracy code multiplies the first element of the batch only."""
    x, left, right = torch.randn(2, 3, 16), torch.randn(16, 4), torch.randn(4, 8)
    found = adapted(x, torch.zeros(2, 3, 8), left, right)
    expected = oracle.layer_output(
        x.view(-1, 16).double().numpy(),
        np.zeros((8, 16)),
        left.double().numpy(),
        right.double().numpy(),
        scale=0.25,
    )
    np.testing.assert_allclose(found.view(-1, 8).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_kept_weights_follow_adamw_and_the_others_stay_zero() -> None:
    R = random_mask((4, 8), TWO_FOUR, generator())
    W = torch.randn(4, 8) * R
    start, moments = W.double().clone(), SparseMoments(R)
    options = AdamW(lr=0.01, weight_decay=0.1)
    gradients = [torch.randn(4, 8) for _ in range(5)]
    for gradient in gradients:
        moments.step(W, gradient, options)
    assert not bool(W[~R].any())
    assert len(moments.m) == len(moments.v) == 16
    for row, column in R.nonzero().tolist():
        expected = oracle.adamw(
            float(start[row, column]),
            [float(g[row, column]) for g in gradients],
            options.lr,
            options.betas,
            options.eps,
            options.weight_decay,
        )
        assert float(W[row, column]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_the_support_of_the_weight_stays_the_same_over_training() -> None:
    torch.manual_seed(1)
    R = random_mask((8, 16), TWO_FOUR, generator())
    W = (torch.randn(8, 16) * R).requires_grad_()
    moments, X, Y = SparseMoments(R), torch.randn(64, 16), torch.randn(64, 8)
    losses = []
    for _ in range(50):
        RC = double_mask(W, R, TWO_FOUR)
        loss = (double_pruned(X, W, R, RC) - Y).square().mean()
        (gradient,) = torch.autograd.grad(loss, W)
        with torch.no_grad():
            moments.step(W, gradient, AdamW(lr=0.03))
        losses.append(loss.item())
        assert torch.equal(W != 0, R)
    assert sum(after < before for before, after in pairwise(losses)) > 40
