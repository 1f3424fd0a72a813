"""methods/jsq.py."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.hessians import exact
from tests.oracles.pruning import best_group_masks, ranges_without
from trinity.methods import jsq, wanda
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Pattern, Sparse, Unstructured
from trinity.methods.jsq import JSQ, JsqConfig, ranges

PATTERNS = [NM(2, 4), NM(1, 4), Unstructured(0.5)]


def layer(out: int = 5, d_in: int = 8, seq: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, the norms of its inputs, and their mean sequence."""
    X = torch.randn(seq, d_in) * torch.logspace(-1, 1, d_in)
    return torch.randn(out, d_in), X.square().sum(0).sqrt(), X


def pruned(
    W: Tensor, x_norm: Tensor, X: Tensor, pattern: Pattern = PATTERNS[0], rho: float = 2.1
) -> Sparse:
    stats = LayerStats(x_norm_clipped=x_norm, X_mean_clipped=X)
    made = JSQ.compress(W, Dense(W), stats, JsqConfig(pattern=pattern, rho=rho))
    assert isinstance(made, Sparse)
    return made


@pytest.mark.parametrize("at_once", [1, 100, jsq.AT_ONCE])
def test_ranges_are_those_of_the_layer_without_one_weight(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: every weight is set to zero in turn, in float64."""
    monkeypatch.setattr(jsq, "AT_ONCE", at_once)
    W, _, X = layer()
    expected = ranges_without(exact(W), exact(X))
    np.testing.assert_allclose(exact(ranges(W, X)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.3, 2.1])
def test_what_is_kept_of_a_row_has_the_largest_scores(rho: float) -> None:
    """Oracle: all masks, under scores in float64."""
    W, x_norm, X = layer()
    S = np.abs(exact(W)) * exact(x_norm) + rho * ranges_without(exact(W), exact(X))
    kept = pruned(W, x_norm, X, rho=rho).mask
    halves = pruned(W, x_norm, X, Unstructured(0.5), rho).mask
    for row, groups, half in zip(S, kept.view(-1, 2, 4), halves, strict=True):
        for scores, group in zip(row.reshape(2, 4), groups, strict=True):
            assert tuple(group.nonzero().flatten().tolist()) in best_group_masks(scores, 2, 4)
        best = max(combinations(range(8), 4), key=lambda chosen: sum(row[list(chosen)]))
        assert tuple(half.nonzero().flatten().tolist()) == best


def test_weights_that_cancel_each_others_range_stay() -> None:
    """All have equal magnitude and norm: Wanda keeps the first two, which are constant."""
    swings = torch.tensor([3.0, -3.0, 3.0, -3.0])
    X = torch.stack([torch.full((4,), 3.0)] * 2 + [swings] * 2, dim=1)
    W = torch.tensor([[1.0, 1.0, 1.0, -1.0]])
    x_norm = X.square().sum(0).sqrt()
    assert wanda.mask(W, x_norm, NM(2, 4)).tolist() == [[True, True, False, False]]
    assert pruned(W, x_norm, X).mask.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_scales_moved_from_inputs_into_weights_change_no_mask(pattern: Pattern) -> None:
    W, x_norm, X = layer(6, 16)
    s = 2.0 ** torch.randint(-3, 4, (16,))  # powers of two: exact
    moved = pruned(W * s, x_norm / s, X / s, pattern).mask
    assert torch.equal(moved, pruned(W, x_norm, X, pattern).mask)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_without_rho_it_is_wanda_and_kept_weights_are_bit_identical(pattern: Pattern) -> None:
    W, x_norm, X = layer(6, 16)
    made = pruned(W, x_norm, X, pattern, rho=0)
    assert torch.equal(made.mask, wanda.mask(W, x_norm, pattern))
    assert torch.equal(made.dequantize(), torch.where(made.mask, W, 0.0))


def test_without_calibration_it_says_what_is_missing() -> None:
    W = torch.randn(2, 4)
    with pytest.raises(ConfigError, match="jsq: needs clipped inputs"):
        JSQ.compress(W, Dense(W), LayerStats(), JsqConfig(pattern=NM(2, 4)))
