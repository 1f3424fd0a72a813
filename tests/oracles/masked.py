"""The best kept weights of a row under a mask: dense float64 least squares, one row at a time."""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lstsq
from scipy.optimize import lsq_linear

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def best_kept(target: Array, mask: Mask, X: Array) -> Array:
    """Least squares of X target^T on the kept columns of X; of many solutions the smallest.

    target: [out, in]  mask: bool [out, in], True keeps  X: [tokens, in]  ->  [out, in]
    """
    best = np.zeros_like(target)
    for i, kept in enumerate(mask):
        if kept.any():
            best[i, kept] = lstsq(X[:, kept], X @ target[i])[0]
    return best


def output_errors(w: Array, target: Array, X: Array) -> Array:
    """2/tokens |X (w - target)^T|^2 of each row, by the outputs themselves.  -> [out]"""
    outputs = X @ (w - target).T
    squares: Array = 2 / len(X) * (outputs**2).sum(0)
    return squares


def best_in_box(X: Array, lower: Array, upper: Array) -> Array:
    """The d in a box that minimizes |X d|, by bounded-variable least squares.  X: [tokens, in]"""
    found = lsq_linear(X, np.zeros(len(X)), (lower, upper), method="bvls", tol=1e-14)
    solution: Array = found.x
    return solution
