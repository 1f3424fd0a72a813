"""methods/squeezellm.py."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.hessians import exact
from tests.methods.samples import random_mask
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, RowCoded, Sparse, WithOutliers
from trinity.methods.squeezellm import SQUEEZELLM, SqueezellmConfig, weighted_levels

Array = np.ndarray[Any, Any]


def compressed(W: Tensor, F: Tensor, **options: Any) -> RowCoded | WithOutliers:
    config = SqueezellmConfig.model_validate({"dtype": "float32", **options})
    made = SQUEEZELLM.compress(W, Dense(W), LayerStats(fisher=F), config)
    assert isinstance(made, RowCoded | WithOutliers)
    return made


def objective(W: Array, F: Array, found: Array) -> float:
    return float((F * (W - found) ** 2).sum())


def best_partition(w: Array, f: Array, count: int) -> float:
    """The least sum of squares over every partition of the sorted row into `count` runs."""
    order = np.argsort(w)
    w, f = w[order], f[order]
    least = np.inf
    for cuts in combinations(range(1, len(w)), count - 1):
        ends = [0, *cuts, len(w)]
        total = 0.0
        for a, b in pairwise(ends):
            centre = (f[a:b] * w[a:b]).sum() / f[a:b].sum()
            total += (f[a:b] * (w[a:b] - centre) ** 2).sum()
        least = min(least, total)
    return float(least)


def lloyd(w: Array, f: Array, levels: Array) -> Array:
    """One step of k-means from some levels, weight by weight."""
    nearest = np.abs(w[:, None] - levels).argmin(1)
    made = levels.copy()
    for k in range(len(levels)):
        own = nearest == k
        if f[own].sum() > 0:
            made[k] = (f[own] * w[own]).sum() / f[own].sum()
    return made


def test_its_levels_are_a_fixed_point_that_few_weights_show_to_be_near_the_best() -> None:
    """Oracle: k-means weight by weight, and every partition of a row, in float64."""
    W, F = torch.randn(30, 9, dtype=torch.float64), torch.rand(30, 9, dtype=torch.float64)
    levels = weighted_levels(W, F, 4, 50)
    ratios = []
    for w, f, found in zip(W.numpy(), F.numpy(), levels.numpy(), strict=True):
        np.testing.assert_allclose(lloyd(w, f, found), found, atol=1e-12)
        value = objective(w, f, found[np.abs(w[:, None] - found).argmin(1)])
        least = best_partition(w, f, 4)
        assert value >= least - 1e-12
        ratios.append(value / least)
    assert np.median(ratios) < 1.5  # k-means ends in a minimum that need not be the least


def test_no_step_makes_the_objective_larger() -> None:
    W, F = torch.randn(8, 200, dtype=torch.float64), torch.rand(8, 200, dtype=torch.float64) ** 4
    before = torch.full((8,), float("inf"), dtype=torch.float64)
    for steps in (1, 2, 3, 5, 9, 50):
        levels = weighted_levels(W, F, 8, steps)
        nearest = (W[..., None] - levels[:, None]).square().amin(-1)
        now = (F * nearest).sum(1)
        assert bool((now <= before + 1e-12).all())
        before = now


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_row_has_as_many_values_as_levels_and_each_weight_the_nearest(bits: int) -> None:
    W, F = torch.randn(6, 64), torch.rand(6, 64)
    found = compressed(W, F, bits=bits)
    assert isinstance(found, RowCoded)
    decoded = found.dequantize()
    for row in range(6):
        assert len(decoded[row].unique()) <= 2**bits
        distances = (W[row, :, None] - found.levels[row]).abs()
        assert torch.equal((decoded[row] - W[row]).abs(), distances.amin(1))


def test_a_transposed_weight_is_clustered_like_its_copy() -> None:
    W, F = torch.randn(64, 8).T, torch.rand(64, 8).T
    found = compressed(W, F).dequantize()
    assert torch.equal(found, compressed(W.contiguous(), F.contiguous()).dequantize())


def test_the_scale_of_the_sensitivities_is_of_no_matter() -> None:
    W, F = torch.randn(4, 64), torch.rand(4, 64)
    assert torch.equal(compressed(W, F).dequantize(), compressed(W, 1024 * F).dequantize())


def test_rows_without_gradients_are_clustered_as_if_all_were_equal() -> None:
    W, F = torch.randn(2, 64), torch.zeros(2, 64)
    F[1, :7] = 1
    found, plain = compressed(W, F, bits=3), compressed(W, torch.ones(2, 64), bits=3)
    assert torch.equal(found.dequantize(), plain.dequantize())


def test_the_loss_counts_and_not_the_weights() -> None:
    W, F = torch.randn(16, 128), torch.rand(16, 128) ** 6
    found = exact(compressed(W, F, bits=3).dequantize())
    plain = exact(compressed(W, torch.ones_like(W), bits=3).dequantize())
    assert objective(exact(W), exact(F), found) < objective(exact(W), exact(F), plain)


def test_outliers_are_the_largest_and_the_most_sensitive_of_every_row() -> None:
    W, F = torch.randn(5, 100), torch.rand(5, 100)
    found = compressed(W, F, bits=2, outliers=0.03, sensitive=0.02)
    assert isinstance(found, WithOutliers)
    decoded = found.dequantize()
    for row in range(5):
        largest = set(W[row].abs().argsort(descending=True)[:3].tolist())
        rest = [j for j in range(100) if j not in largest]
        score = (F[row] * W[row].square())[rest]
        needed = {rest[j] for j in score.argsort(descending=True)[:2].tolist()}
        kept = sorted(largest | needed)
        there = found.values[row] != 0
        assert set(found.columns[row][there].tolist()) <= set(kept)
        torch.testing.assert_close(decoded[row, kept], W[row, kept])


def test_a_share_that_is_not_zero_is_one_entry_at_least() -> None:
    found = compressed(torch.randn(3, 40), torch.rand(3, 40), sensitive=0.0005)
    assert isinstance(found, WithOutliers)
    assert found.values.shape == (3, 1)


def test_what_it_cannot_do_is_refused() -> None:
    W, F = torch.randn(4, 16), torch.rand(4, 16)
    config = SqueezellmConfig()
    with pytest.raises(ConfigError, match="needs gradients of the loss"):
        SQUEEZELLM.compress(W, Dense(W), LayerStats(), config)
    pruned = Sparse(Dense(W), random_mask(4, 16, NM(2, 4)), NM(2, 4))
    with pytest.raises(ConfigError, match="pruned this weight"):
        SQUEEZELLM.compress(W, pruned, LayerStats(fisher=F), config)
    few = SqueezellmConfig(outliers=0.4, sensitive=0.4)
    assert SQUEEZELLM.problem((4, 2), few) is not None
