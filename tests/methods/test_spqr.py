"""methods/spqr.py."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.hessians import error, exact, inputs, stats_of
from tests.oracles import feedback
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Nested, Sparse, WithOutliers, format_of
from trinity.methods.spqr import SPQR, SpqrConfig

Array = feedback.Array


def compressed(W: Tensor, stats: LayerStats, **options: Any) -> Nested | WithOutliers:
    chosen = {"group_size": 8, "most": 1.0, "dtype": "float32", "damping": 0.1, **options}
    made = SPQR.compress(W, Dense(W), stats, SpqrConfig.model_validate(chosen))
    assert isinstance(made, Nested | WithOutliers)
    return made


def rounded(w: float, scale: float, zero: float, bits: int) -> float:
    return scale * (min(max(round(w / scale + zero), 0), 2**bits - 1) - zero)


def grid(values: Array, bits: int) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if low > high - low:
        low = 0.0
    elif -high > high - low:
        high = 0.0
    scale = (high - low) / (2**bits - 1)
    return scale, -low / scale


def cost(values: Array, strengths: Array, bits: int) -> float:
    own = grid(values, bits)
    errors = [rounded(float(v), *own, bits) - v for v in values]
    return float(sum((e * s) ** 2 for e, s in zip(errors, strengths, strict=True)))


def second_level(values: Array, bits: int) -> Array:
    """The values of 16 rows on one grid, float32 as they are stored."""
    found = np.empty_like(values)
    for start in range(0, len(values), 16):
        part = values[start : start + 16]
        low = np.float32(part.min())
        step = np.float32((part.max() - low) / (2**bits - 1))
        for i, value in enumerate(part):
            code = 0 if step == 0 else min(max(round((value - low) / step), 0), 2**bits - 1)
            found[start + i] = low + step * np.float32(code)
    return found


def by_loops(W: Array, H: Array, threshold: float, bits: int, size: int) -> tuple[Array, Array]:
    """What is stored and which entries are outliers, a weight at a time.  H: damped"""
    strengths = np.sqrt(feedback.removal_costs(H))
    theta = threshold * np.mean(W.var(axis=0, ddof=1) * strengths**2)
    apart = np.zeros(W.shape, dtype=bool)
    grids: list[Array] = []

    def decide(j: int, now: Array) -> Array:
        if j % size == 0:
            members, s = now[:, j : j + size], strengths[j : j + size]
            fitted = []
            for row in members:
                before = cost(row, s, bits)
                seem = [
                    before - cost(np.delete(row, i), np.delete(s, i), bits) > theta
                    for i in range(size)
                ]
                mean = row[~np.array(seem)].mean() if not all(seem) else 0.0
                fitted.append(grid(np.where(seem, mean, row), bits))
            grids[:] = [second_level(np.array(of), 3) for of in zip(*fitted, strict=True)]
        stored = np.empty(len(now))
        for i, w in enumerate(now[:, j]):
            value = rounded(float(w), float(grids[0][i]), float(grids[1][i]), bits)
            apart[i, j] = ((w - value) * strengths[j]) ** 2 > theta
            stored[i] = w if apart[i, j] else value
        return stored

    return feedback.sweep(W, H, decide), apart


@pytest.mark.parametrize("threshold", [0.02, 0.2, 5.0])
def test_it_equals_plain_loops(threshold: float) -> None:
    W, stats = torch.randn(20, 24), stats_of(inputs(96, 24))
    assert stats.H is not None
    expected, apart = by_loops(
        exact(W), feedback.damped(exact(stats.H), 0.1), threshold, bits=3, size=8
    )
    found = compressed(W, stats, bits=3, outlier_threshold=threshold, precision="float64")
    np.testing.assert_allclose(found.dequantize().numpy(), expected, rtol=1e-4, atol=1e-4)
    if isinstance(found, WithOutliers):
        assert np.array_equal((found.term() != 0).numpy(), apart)
    else:
        assert not apart.any()


def test_without_a_threshold_to_speak_of_there_are_no_outliers() -> None:
    W, stats = torch.randn(20, 24), stats_of(inputs(96, 24))
    found = compressed(W, stats, outlier_threshold=1e9)
    assert isinstance(found, Nested)
    assert format_of(found).label == "int4 group 8 int3 scales"


def test_a_threshold_of_nothing_gives_the_weight_back() -> None:
    W, stats = torch.randn(20, 24), stats_of(inputs(96, 24))
    torch.testing.assert_close(compressed(W, stats, outlier_threshold=0.0).dequantize(), W)


def test_a_lower_threshold_has_more_outliers_and_a_smaller_error() -> None:
    W, stats = torch.randn(32, 64), stats_of(inputs(256, 64))
    counts, errors = [], []
    for threshold in (1e9, 0.5, 0.1, 0.02):
        found = compressed(W, stats, bits=3, outlier_threshold=threshold)
        counts.append(int((found.values != 0).sum()) if isinstance(found, WithOutliers) else 0)
        errors.append(error(W, found.dequantize(), stats))
    assert counts == sorted(counts)
    assert errors == sorted(errors, reverse=True)


def test_a_row_has_no_more_outliers_than_are_allowed() -> None:
    W, stats = torch.randn(20, 40), stats_of(inputs(96, 40))
    found = compressed(W, stats, bits=2, outlier_threshold=0.0, most=0.1)
    assert isinstance(found, WithOutliers)
    assert (found.term() != 0).sum(1).tolist() == [4] * 20


def test_scales_that_are_equal_and_groups_of_equal_weights_are_exact() -> None:
    W, stats = torch.full((20, 16), 0.375), stats_of(inputs(96, 16))
    W[:, 8:] = -0.25
    W[0], W[1] = 0, W[2]
    found = compressed(W, stats, outlier_threshold=1e9, dtype="float16")
    assert bool(found.dequantize().isfinite().all())
    torch.testing.assert_close(found.dequantize()[2:], W[2:], atol=0.06, rtol=0)


def test_what_it_cannot_do_is_refused() -> None:
    W, stats = torch.randn(4, 24), stats_of(inputs(96, 24))
    assert SPQR.problem((4, 24), SpqrConfig()) == "group_size 16 does not divide in = 24"
    mask = (torch.arange(24) % 4 < 2).repeat(4, 1)
    with pytest.raises(ConfigError, match="already made this weight sparse"):
        SPQR.compress(W, Sparse(Dense(W), mask, NM(2, 4)), stats, SpqrConfig(group_size=8))
