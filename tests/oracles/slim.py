"""SLiM's published order of operations, in float64 with the plainest possible parts."""

import numpy as np
from numpy.typing import NDArray

from tests.oracles.low_rank import best_product
from tests.oracles.pruning import shifted_norm

Array = NDArray[np.float64]


def absmax(W: Array, bits: int) -> Array:
    """One scale for the tensor: the largest magnitude on the largest code."""
    scale = float(np.abs(W).max()) / (2 ** (bits - 1) - 1)
    return np.array([[scale * round(float(w) / scale) for w in row] for row in W])


def nm_mask(scores: Array, n: int, m: int) -> NDArray[np.bool_]:
    """The n largest of every m of a row; scores without ties."""
    mask = np.zeros(scores.shape, dtype=bool)
    for i in range(scores.shape[0]):
        for start in range(0, scores.shape[1], m):
            order = sorted(range(start, start + m), key=lambda j: -float(scores[i, j]))
            mask[i, order[:n]] = True
    return mask


def refit(W: Array, x_norm: Array, bits: int, n: int, m: int, rank: int) -> tuple[Array, Array]:
    """(W^C, B A): adapter from the error of quantized and masked W, then W^C from the rest."""
    d = shifted_norm(x_norm)
    mask = nm_mask(np.abs(W) * d, n, m)
    product = best_product(W - absmax(W, bits) * mask, d, rank)
    return absmax((W - product) * mask, bits), product


def salient_columns(W: Array, size: Array, count: int, *, shifted_square: bool) -> list[int]:
    """The columns j with the largest (activation of j) times sum_i |W_ij|, in order."""
    weight = [float(v) for v in (shifted_norm(size) ** 2 if shifted_square else size)]
    scores = [
        weight[j] * sum(abs(float(W[i, j])) for i in range(W.shape[0])) for j in range(W.shape[1])
    ]
    return sorted(sorted(range(len(scores)), key=lambda j: -scores[j])[:count])


def scaled_rounding(
    W: Array, scale: float, salient: NDArray[np.bool_], factor: float, bits: int
) -> Array:
    """Each weight times its input's factor, rounded and clipped, and divided by it again."""
    found = np.zeros(W.shape)
    for i, j in np.ndindex(W.shape):
        by = factor if salient[j] else 1.0
        code = max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, round(float(W[i, j]) * by / scale)))
        found[i, j] = code * scale / by
    return found
