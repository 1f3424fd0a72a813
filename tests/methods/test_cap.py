"""methods/cap.py."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.samples import random_mask
from trinity.methods import cap
from trinity.methods.cap import CAP, CapConfig, inverses, prune, tiles
from trinity.methods.conformance import check
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Sparse

Array = np.ndarray[Any, Any]
DOUBLE = torch.float64


def compressed(W: Tensor, G: Tensor, **options: Any) -> Sparse:
    config = CapConfig.model_validate({"pattern": "50%", **options})
    made = CAP.compress(W, Dense(W), LayerStats(gradients=G), config)
    assert isinstance(made, Sparse)
    return made


def blocks(count: int, size: int) -> tuple[Tensor, Tensor, Array]:
    """W, F^-1 and F of some blocks, in float64."""
    G = torch.randn(9, count, size, dtype=DOUBLE)
    F = np.einsum("mbi,mbj->bij", G.numpy(), G.numpy()) / 9 + 0.2 * np.eye(size)
    return torch.randn(count, size, dtype=DOUBLE), inverses(G, 0.2), F


def least_loss(w: Array, F: Array, gone: list[int]) -> tuple[float, Array]:
    """The least of 1/2 (v - w)^T F (v - w) with some entries of v zero, by the normal equations."""
    left = [j for j in range(len(w)) if j not in gone]
    v = np.zeros_like(w)
    v[left] = w[left] + np.linalg.solve(F[np.ix_(left, left)], F[np.ix_(left, gone)] @ w[gone])
    return float((v - w) @ F @ (v - w)) / 2, v


def greedy(w: Array, F: Array, count: int, m: int = 0, n: int = 0) -> tuple[list[int], list[float]]:
    """Which weights go in which order, each found by solving for every one that could be next."""
    gone: list[int] = []
    losses: list[float] = []
    for _ in range(count):
        free = [j for j in range(len(w)) if j not in gone]
        if m:
            free = [j for j in free if sum(i // m == j // m for i in gone) < m - n]
        least, best = min((least_loss(w, F, [*gone, j])[0], j) for j in free)
        gone.append(best)
        losses.append(least)
    return gone, losses


def test_every_removal_is_the_cheapest_and_the_others_move_to_where_the_loss_is_least() -> None:
    """Oracle: normal equations in float64 for every weight that could go next."""
    W, F_inv, F = blocks(6, 8)
    counts = torch.tensor([0, 1, 3, 5, 7, 8])
    found, kept, grown = prune(W, F_inv, counts)
    for row, count in enumerate(counts.tolist()):
        gone, losses = greedy(W[row].numpy(), F[row], count)
        assert sorted(gone) == (~kept[row]).nonzero().flatten().tolist()
        np.testing.assert_allclose(grown[row, :count], losses, rtol=1e-9)
        if count < 8:
            _, expected = least_loss(W[row].numpy(), F[row], gone)
            np.testing.assert_allclose(found[row], expected, atol=1e-10)
        assert torch.equal(found[row] == 0, ~kept[row])


def test_n_of_m_takes_from_groups_that_have_more_than_n_left() -> None:
    W, F_inv, F = blocks(5, 8)
    found, kept, _ = prune(W, F_inv, torch.full((5,), 4), NM(2, 4))
    assert bool((kept.view(5, 2, 4).sum(-1) == 2).all())
    for row in range(5):
        gone, _ = greedy(W[row].numpy(), F[row], 4, m=4, n=2)
        assert sorted(gone) == (~kept[row]).nonzero().flatten().tolist()
        np.testing.assert_allclose(
            found[row], least_loss(W[row].numpy(), F[row], gone)[1], atol=1e-10
        )


def test_the_inverse_is_that_of_rank_one_updates_gradient_by_gradient() -> None:
    """Oracle: Woodbury's formula as the paper applies it, from I / lambda on."""
    G = torch.randn(7, 3, 5, dtype=DOUBLE)
    for block in range(3):
        expected = np.eye(5) / 0.3
        for g in G[:, block].numpy():
            moved = expected @ g
            expected -= np.outer(moved, moved) / (7 + g @ moved)
        np.testing.assert_allclose(inverses(G, 0.3)[block], expected, rtol=1e-9)


def test_a_layer_loses_what_grows_its_loss_least() -> None:
    """Oracle: every block's own order, and every way to share the removals between two blocks."""
    W, G = torch.randn(2, 6), torch.randn(9, 2, 6)
    found = compressed(W, G, block_size=6, damping=0.5)
    F = np.einsum("mbi,mbj->bij", G.double(), G.double()) / 9
    F += 0.5 * float(G.double().square().mean()) * np.eye(6)
    orders = [greedy(W[row].double().numpy(), F[row], 6) for row in range(2)]
    count = int((~found.mask[0]).sum())
    assert int((~found.mask).sum()) == 6
    for row, gone in enumerate((count, 6 - count)):
        assert set((~found.mask[row]).nonzero().flatten().tolist()) == set(orders[row][0][:gone])
    # No block goes on where the other could have stopped before it lost as much.
    for row, other, gone in ((0, 1, count), (1, 0, 6 - count)):
        if gone and 6 - gone < 6:
            assert orders[row][1][gone - 1] <= orders[other][1][6 - gone] + 1e-12


def test_what_is_kept_moves_and_that_is_better_than_the_mask_alone() -> None:
    W, G = torch.randn(4, 64), torch.randn(200, 4, 64) @ torch.randn(64, 64) / 8
    found = compressed(W, G, block_size=64, damping=0.01)
    F = np.einsum("mbi,mbj->bij", G.double(), G.double()) / 200

    def loss(V: Tensor) -> float:
        change = (V - W).double().numpy()
        return float(np.einsum("bi,bij,bj->", change, F, change))

    assert loss(found.dequantize()) < 0.5 * loss(W * found.mask)


def test_gradients_that_do_not_correlate_prune_by_weight_and_gradient_alone() -> None:
    """One sample for each input, so that F is diagonal."""
    W, size = torch.randn(3, 8), torch.rand(8) + 0.5
    G = torch.diag(size)[:, None, :].expand(8, 3, 8)
    found = compressed(W, G, block_size=8, damping=1e-6)
    score = W.double().square() * size.double().square()
    # A block's loss is a sum over what it lost: rows with small scores lose more.
    losses = score.sort(dim=1).values.cumsum(1)
    limit = losses.flatten().sort().values[11]
    for row in range(3):
        gone = int((losses[row] <= limit).sum())
        lowest = set(score[row].argsort()[:gone].tolist())
        assert set((~found.mask[row]).nonzero().flatten().tolist()) == lowest
    torch.testing.assert_close(found.dequantize(), W * found.mask)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "50%", "70%"])
@pytest.mark.parametrize("shape", [(6, 48), (3, 40)])
def test_as_many_go_as_the_pattern_says(pattern: str, shape: tuple[int, int]) -> None:
    W, G = torch.randn(shape), torch.randn(5, *shape)
    found = compressed(W, G, pattern=pattern, block_size=16)
    assert int((~found.mask).sum()) == int(found.pattern.sparsity * W.numel())
    assert torch.equal(found.dequantize() != 0, found.mask)


def test_blocks_are_runs_of_a_row_and_how_many_at_once_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    covered = torch.zeros(5, 40, dtype=torch.int64)
    for at in tiles((5, 40), 16):
        covered[at] += 1
    assert bool((covered == 1).all())
    W, G = torch.randn(5, 40), torch.randn(6, 5, 40)
    found = compressed(W, G, block_size=16)
    monkeypatch.setattr(cap, "AT_ONCE", 2 * 16**2)
    assert [at[0] for at in tiles((5, 40), 16)][:3] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert torch.equal(compressed(W, G, block_size=16).dequantize(), found.dequantize())


def test_blocks_are_pruned_as_if_each_were_alone() -> None:
    W, G = torch.randn(1, 8), torch.randn(9, 1, 8)
    config = {"pattern": "2:4", "block_size": 4}
    whole = compressed(W, G, **config).dequantize()
    mean = G.square().mean()
    for start in (0, 4):
        part = slice(start, start + 4)
        own = G[:, :, part]
        share = 0.1 * float(mean / own.square().mean())  # lambda is the layer's
        alone = compressed(W[:, part], own, damping=share, **config).dequantize()
        torch.testing.assert_close(alone, whole[:, part], rtol=1e-4, atol=1e-6)


def test_the_size_of_gradients_is_of_no_matter_and_without_any_the_smallest_go() -> None:
    W, G = torch.randn(4, 16), torch.randn(5, 4, 16)
    assert torch.equal(compressed(W, 1024 * G).dequantize(), compressed(W, G).dequantize())
    found = compressed(W, 0 * G, pattern="2:4").dequantize()
    smallest = W.abs().view(-1, 4).argsort(dim=1)[:, :2]
    assert bool((found.view(-1, 4).gather(1, smallest) == 0).all())
    torch.testing.assert_close(found[found != 0], W[found != 0])


def test_of_four_weights_the_two_that_are_kept_are_seldom_worse_than_the_best_two() -> None:
    """Oracle: all six masks of a group, each with the best weights for it."""
    W, F_inv, F = blocks(40, 4)
    grown = prune(W, F_inv, torch.full((40,), 2), NM(2, 4))[2]
    best = [
        min(least_loss(W[row].numpy(), F[row], list(pair))[0] for pair in combinations(range(4), 2))
        for row in range(40)
    ]
    ratios = grown[:, 1].numpy() / np.array(best)
    assert ratios.min() >= 1 - 1e-9
    assert np.median(ratios) == pytest.approx(1)


def test_what_it_cannot_do_is_refused() -> None:
    W, G = torch.randn(4, 16), torch.randn(3, 4, 16)
    config = CapConfig.model_validate({"pattern": "2:4"})
    with pytest.raises(ConfigError, match="cap: needs gradients of the loss"):
        CAP.compress(W, Dense(W), LayerStats(), config)
    pruned = Sparse(Dense(W), random_mask(4, 16, NM(2, 4)), NM(2, 4))
    with pytest.raises(ConfigError, match="already made this weight sparse"):
        CAP.compress(W, pruned, LayerStats(gradients=G), config)
    odd = CapConfig.model_validate({"pattern": "2:4", "block_size": 6})
    assert CAP.problem((4, 16), odd) == "block_size 6 is no multiple of the pattern's 4"


@pytest.mark.parametrize(
    "options", [{"pattern": "50%"}, {"pattern": "1:4", "block_size": 8}], ids=str
)
def test_it_conforms_with_other_options_too(options: dict[str, Any]) -> None:
    assert check(CAP, options=options) == []
