"""SLoPe by its definitions: loops in float64, and expectations by counting every case."""

from fractions import Fraction
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def layer_output(
    x: Array, W: Array, left: Array | None = None, right: Array | None = None, scale: float = 1.0
) -> Array:
    """y_o = sum_i x_i W_oi + scale * sum_k (sum_i x_i L_ik) R_ko.  x: [tokens, in]"""
    y = np.zeros((x.shape[0], W.shape[0]))
    for t in range(x.shape[0]):
        for o in range(W.shape[0]):
            y[t, o] = sum(x[t, i] * W[o, i] for i in range(W.shape[1]))
            if left is None or right is None:
                continue
            for k in range(left.shape[1]):
                inner = sum(x[t, i] * left[i, k] for i in range(left.shape[0]))
                y[t, o] += scale * inner * right[k, o]
    return y


def best_columns(values: Array, n: int, m: int) -> float:
    """The largest magnitude that at most n of every m consecutive outputs can keep, all choices
    tried.  values: [out] of one input column
    """
    total = 0.0
    for start in range(0, len(values), m):
        group = np.abs(values[start : start + m])
        total += max(sum(group[j] for j in kept) for kept in combinations(range(m), n))
    return total


def expected_loss(n: int, m: int) -> Fraction:
    """Fraction of entries lost when an n:m random mask is pruned again across rows.

    Every outcome of m independent entries, each kept with probability n/m, is counted; of more than
    n kept entries the surplus is lost.
    """
    keep = Fraction(n, m)
    lost = Fraction(0)
    for outcome in product((0, 1), repeat=m):
        chance = Fraction(1)
        for bit in outcome:
            chance *= keep if bit else 1 - keep
        lost += chance * max(sum(outcome) - n, 0)
    return lost / m


def adamw(
    w: float,
    gradients: list[float],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> float:
    """One weight after AdamW (Loshchilov and Hutter, algorithm 2) on a list of gradients."""
    first = second = 0.0
    for step, g in enumerate(gradients, start=1):
        first = betas[0] * first + (1 - betas[0]) * g
        second = betas[1] * second + (1 - betas[1]) * g * g
        unbiased = first / (1 - betas[0] ** step)
        spread = second / (1 - betas[1] ** step)
        w = w - lr * decay * w - lr * unbiased / (spread**0.5 + eps)
    return w
