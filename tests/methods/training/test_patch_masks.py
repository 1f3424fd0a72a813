"""methods/training/patch.py: soft masks, hard masks, priors, against plain float64 loops."""

import itertools

import numpy as np
import pytest
import torch

from trinity.methods.formats import tiles
from trinity.methods.training import patch
from trinity.methods.training.patch import Logits

SHAPE, SIZE = (8, 16), 8


def _logits(seed: int = 0, *, scale: float = 1.0) -> Logits:
    generator = torch.Generator().manual_seed(seed)
    P = scale * torch.randn(32, 6, generator=generator)
    T = scale * torch.randn(1, 2, generator=generator)
    return Logits(SHAPE, SIZE, P, T)


def test_the_patterns_are_all_of_two_of_four_once() -> None:
    every = {tuple(p) for p in itertools.product((0, 1), repeat=4) if sum(p) == 2}
    assert {tuple(int(i) for i in row) for row in patch.PATTERNS} == every
    assert len(patch.PATTERNS) == 6


def test_the_soft_mask_is_the_formula_by_hand() -> None:
    logits, generator = _logits(), torch.Generator().manual_seed(3)
    soft = patch.soft_mask(logits, (5.0, 3.0), 0.7, generator)
    again = torch.Generator().manual_seed(3)
    u = [torch.rand(s, generator=again).double().numpy() for s in ((32, 6), (1, 2), (1, 2))]
    noise = [-np.log(-np.log(x)) for x in u]
    assert logits.P is not None
    assert logits.T is not None
    P, T = logits.P.double().numpy(), logits.T.double().numpy()
    expected = np.zeros(SHAPE)
    for row in range(8):
        for column in range(16):
            group = row * 4 + column // 4
            e = np.exp((5 * P[group] + noise[0][group]) / 0.7)
            two = sum(e[k] / e.sum() * float(patch.PATTERNS[k, column % 4]) for k in range(6))
            tile = column // 8
            # Two classes, [0, T], noise after the scale.
            two_classes = np.exp(
                np.array([noise[2][0, tile], 3 * T[0, tile] + noise[1][0, tile]]) / 0.7
            )
            dense = two_classes[1] / two_classes.sum()
            expected[row, column] = dense + (1 - dense) * two
    np.testing.assert_allclose(soft.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert bool(((soft >= 0) & (soft <= 1)).all())


@pytest.mark.parametrize("seed", range(5))
def test_every_group_of_a_soft_two_four_mask_sums_to_two(seed: int) -> None:
    logits = _logits(seed)
    only = Logits(SHAPE, SIZE, logits.P, None)
    soft = patch.soft_mask(only, (7.0, 1.0), 2.0, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(soft.view(-1, 4).sum(-1), torch.full((32,), 2.0))


def test_the_hard_mask_is_the_limit_without_noise() -> None:
    logits = _logits()
    soft = patch.soft_mask(logits, (1.0, 1.0), 1e-4, None)
    assert torch.equal(soft > 0.5, patch.hard_mask(logits))
    torch.testing.assert_close(soft, patch.hard_mask(logits).float(), rtol=0, atol=1e-4)


def test_signs_of_the_tiles_decide_between_dense_and_two_four() -> None:
    logits = _logits()
    assert logits.T is not None
    T = logits.T
    logits.T = T.abs() + 1
    assert bool(patch.hard_mask(logits).all())
    logits.T = -T.abs() - 1
    two_four = patch.hard_mask(logits)
    assert set(two_four.view(-1, 4).sum(-1).tolist()) == {2}
    logits.T = torch.tensor([[1.0, -1.0]])
    mixed = patch.hard_mask(logits)
    assert float((~mixed).float().mean()) == 0.5 * 0.5
    assert torch.equal(tiles.sparse_tiles(mixed, SIZE), torch.tensor([[False, True]]))


def test_a_prior_prefers_the_mask_that_it_came_from() -> None:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(SHAPE, generator=generator)
    two_four, _ = patch.magnitude_masks(W, 0.75)
    P = patch.pattern_prior(two_four, 3.0)
    assert torch.equal(patch.hard_mask(Logits(SHAPE, SIZE, P, None)), two_four)
    values = sorted(set(P.flatten().tolist()))
    np.testing.assert_allclose(values, [-0.042, 0.0, 0.042], atol=1e-7)
    assert torch.equal(P.sum(1), torch.zeros(32))


def test_as_many_tiles_start_dense_as_the_density_asks_for() -> None:
    mask = torch.zeros(16, 32, dtype=torch.bool)
    kept = [5, 1, 9, 3, 7, 2, 8, 4]  # of each of eight tiles
    for index, count in enumerate(kept):
        row, column = 8 * (index // 4), 8 * (index % 4)
        mask[row : row + 8, column : column + 8].view(8, 8)[0, :0] = True
        mask[row, column : column + min(8, count)] = True
        if count > 8:
            mask[row + 1, column] = True
    T = patch.tile_prior(mask, 8, 0.75, 2.0)
    dense = {index for index, value in enumerate(T.flatten().tolist()) if value > 0}
    assert dense == {2, 6, 4, 0}  # round(2 * 8 * 0.25) of them
    np.testing.assert_allclose(T.abs().numpy(), 0.028, atol=1e-7)


def test_the_density_term_is_flat_at_its_target() -> None:
    kept = torch.tensor(75.0, requires_grad=True)
    patch.density_term(kept, 100, 0.75).backward()
    assert kept.grad is not None
    assert float(kept.grad) == 0.0
    off = torch.tensor(80.0, requires_grad=True)
    patch.density_term(off, 100, 0.75).backward()
    assert float(off.grad) == pytest.approx(0.01)  # type: ignore[arg-type]  # it is there


def test_gumbel_noise_has_the_mean_and_spread_of_its_distribution() -> None:
    noise = patch.gumbel(torch.Size([20_000]), torch.Generator().manual_seed(0)).double()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.03)
    assert float(noise.var()) == pytest.approx(np.pi**2 / 6, rel=0.05)


def test_what_is_linear_in_the_step_has_both_ends() -> None:
    assert [patch.between((4.0, 0.05), done) for done in (0.0, 1.0)] == [4.0, pytest.approx(0.05)]
