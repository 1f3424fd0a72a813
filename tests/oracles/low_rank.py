"""Truncated singular value decompositions and the error that must remain."""

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
