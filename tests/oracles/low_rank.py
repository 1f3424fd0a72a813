"""Truncated singular value decompositions and the error that must remain."""

from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def best_product(E: Array, d: Array, rank: int) -> Array:
    """The rank-`rank` matrix P that minimizes ||(E - P) diag(d)||_F, by numpy's SVD in float64."""
    U, S, Vt = np.linalg.svd(E * d, full_matrices=False)
    product: Array = (U[:, :rank] * S[:rank]) @ Vt[:rank] / d
    return product


def remaining_error(E: Array, d: Array, rank: int) -> float:
    """||(E - P) diag(d)||_F of the best P: root of the sum of the eigenvalues that are left out."""
    weighted = E * d
    eigenvalues = np.linalg.eigvalsh(weighted @ weighted.T)
    left_out = np.sort(eigenvalues)[::-1][rank:]
    return float(np.sqrt(np.clip(left_out, 0, None).sum()))


def weighted_norm(E: Array, d: Array) -> float:
    """||E diag(d)||_F."""
    return float(np.sqrt(sum((float(E[i, j]) * float(d[j])) ** 2 for i, j in np.ndindex(E.shape))))


def best_pruned_rank_one(T: Array, n: int, m: int) -> float:
    """The least ||T - b a||_F over all columns b and rows a that keep n of every m entries.

    For given places of a, the rest of T is lost and the best b a is that of T's kept columns.
    """
    starts = range(0, T.shape[1], m)
    choices = [list(combinations(range(start, start + m), n)) for start in starts]
    most = 0.0
    for choice in product(*choices):
        kept = [j for group in choice for j in group]
        most = max(most, float(np.linalg.svd(T[:, kept], compute_uv=False)[0]) ** 2)
    return float(np.sqrt(max((T**2).sum() - most, 0.0)))


def masked_least_squares(B: Array, T: Array, mask: NDArray[np.bool_]) -> Array:
    """The A that is zero outside the mask and minimizes ||T - B A||_F, one column at a time."""
    A = np.zeros(mask.shape)
    for j in range(T.shape[1]):
        places = np.flatnonzero(mask[:, j])
        if places.size:
            A[places, j] = np.linalg.lstsq(B[:, places], T[:, j], rcond=None)[0]
    return A
