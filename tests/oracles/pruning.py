"""Masks, found by trying them all or by the definition of the error they cost."""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def best_group_masks(scores: Array, n: int, m: int) -> list[tuple[int, ...]]:
    """Every choice of `n` of `m` entries whose kept scores have the largest sum.  scores: [m]"""
    choices = list(combinations(range(m), n))
    totals = [sum(float(scores[j]) for j in kept) for kept in choices]
    return [kept for kept, total in zip(choices, totals, strict=True) if total == max(totals)]


def diagonal_error(W: Array, mask: Mask, s: Array) -> Array:
    """Error of each row under a diagonal Hessian: sum of W_ij^2 s_j over the removed entries."""
    errors = np.zeros(W.shape[0])
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            if not mask[i, j]:
                errors[i] += W[i, j] ** 2 * s[j]
    return errors


def smallest_diagonal_error(w: Array, s: Array, removed: int) -> float:
    """The least that removing exactly `removed` entries of a row can cost, over all choices."""
    costs = [float(w[j]) ** 2 * float(s[j]) for j in range(len(w))]
    return min(sum(costs[j] for j in gone) for gone in combinations(range(len(w)), removed))


def smallest_group_error(w: Array, s: Array, n: int, m: int) -> float:
    """The least that an n:m mask of a row can cost: every mask of every group is tried."""
    total = 0.0
    for start in range(0, len(w), m):
        total += smallest_diagonal_error(w[start : start + m], s[start : start + m], m - n)
    return total


def shifted_norm(x_norm: Array) -> Array:
    """SLiM's shift by definition: the smallest positive squared norm is added to every one."""
    squares = [float(v) ** 2 for v in x_norm]
    positive = [s for s in squares if s > 0]
    smallest = min(positive) if positive else 1.0
    return np.array([(s + smallest) ** 0.5 for s in squares])


def ranges_without(W: Array, X: Array) -> Array:
    """Largest less smallest output of all tokens, with one weight after the other set to zero.

    W: [out, in]   X: [tokens, in]  ->  [out, in]
    """
    found = np.zeros(W.shape)
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            left = W[i].copy()
            left[j] = 0
            outputs = [float(sum(left * x)) for x in X]
            found[i, j] = max(outputs) - min(outputs)
    return found


def adaptive_removals(scores: Array, removed: int) -> tuple[float, float]:
    """Shares alpha of a row's total for which exactly its `removed` lowest scores go: from, to."""
    ascending = sorted(float(v) for v in scores)
    total = sum(ascending)
    below = sum(ascending[:removed]) / total
    above = sum(ascending[: removed + 1]) / total
    return below, above
