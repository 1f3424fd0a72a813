"""Optimal brain surgery column by column: every step inverts what is left of H, by definition."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Decide(Protocol):
    """What is stored for column j, given all weights as they are now."""

    def __call__(self, j: int, W: Array) -> Array: ...


def damped(H: Array, damping: float) -> Array:
    """H with a one for every dead input, and a share of the mean diagonal on the diagonal."""
    found = H.copy()
    for j in range(len(H)):
        if H[j, j] == 0:
            found[j, j] = 1
    return np.asarray(found + damping * np.mean(np.diag(found)) * np.eye(len(H)))


def sweep(W: Array, H: Array, decide: Decide) -> Array:
    """Freeze the columns from left to right; the others take the best values that remain.

    H: damped.  After column j is set to what is stored, the columns after it are the minimum of the
    quadratic error given all that is frozen: W_l -= error [A^-1]_jl / [A^-1]_jj, A = H[j:, j:].
    """
    current, frozen = W.copy(), np.zeros_like(W)
    for j in range(W.shape[1]):
        inverse = np.linalg.inv(H[j:, j:])
        stored = decide(j, current)
        error = current[:, j] - stored
        current[:, j:] -= np.outer(error, inverse[0] / inverse[0, 0])
        frozen[:, j] = stored
    return frozen


def removal_costs(H: Array) -> Array:
    """1 / [(H_{j:,j:})^-1]_jj for every j: what removing w_j costs is its square times this."""
    return np.array([1 / np.linalg.inv(H[j:, j:])[0, 0] for j in range(len(H))])


def nm_rule(H: Array, n: int, m: int, mask: Mask) -> Decide:
    """Prune the m - n cheapest of every m columns; the choice is noted in `mask`, True keeps."""
    costs = removal_costs(H)

    def decide(j: int, W: Array) -> Array:
        if j % m == 0:
            for i in range(W.shape[0]):
                prices = [W[i, k] ** 2 * costs[k] for k in range(j, j + m)]
                for k in sorted(range(m), key=lambda k: (-prices[k], k))[:n]:
                    mask[i, j + k] = True
        return np.where(mask[:, j], W[:, j], 0)

    return decide


def block_rule(H: Array, sparsity: float, block: int, mask: Mask) -> Decide:
    """Prune the cheapest share of every block of columns, all rows together."""
    costs = removal_costs(H)

    def decide(j: int, W: Array) -> Array:
        if j % block == 0:
            stop = min(j + block, W.shape[1])
            places = [(i, k) for i in range(W.shape[0]) for k in range(j, stop)]
            places.sort(key=lambda at: W[at] ** 2 * costs[at[1]])
            for at in places[int(len(places) * sparsity) :]:
                mask[at] = True
        return np.where(mask[:, j], W[:, j], 0)

    return decide


def rounded(w: float, scale: float, zero: int, bits: int, *, symmetric: bool) -> float:
    """The nearest value of a grid that GPTQ's clamped rounding gives."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    offset = 0 if symmetric else zero
    return scale * (min(max(round(w / scale) + offset, low), high) - offset)


def row_grid(values: Array, bits: int, *, symmetric: bool) -> tuple[float, int]:
    """(scale, zero point) of the values that share them; scales are stored in float32.

    The rounding matters: the largest of a symmetric group lies half way between two codes.
    """
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if low == high:
        low, high = -1.0, 1.0
    if symmetric:
        high = max(-low, high)
        low = -high
    scale = float(np.float32((high - low) / (2**bits - 1)))
    return scale, round(-low / scale)


def searched_grid(values: Array, bits: int, *, symmetric: bool) -> tuple[float, int]:
    """GPTQ's search: the range shrunk by up to 80 hundredths, least sum of |error|^2.4."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if symmetric:
        high = max(-low, high)
        low = -high
    best, least = (1.0, 0), np.inf
    for i in range(80):
        share = 1 - i / 100
        scale = float(np.float32(share * (high - low) / (2**bits - 1)))
        zero = round(-share * low / scale)
        errors = [rounded(float(v), scale, zero, bits, symmetric=symmetric) - v for v in values]
        loss = sum(abs(error) ** 2.4 for error in errors)
        if loss < least:
            best, least = (scale, zero), loss
    return best


def grid_rule(
    bits: int,
    group: int,
    fit_on: Callable[[int, Array], Array],
    mask: Mask | None = None,
    *,
    symmetric: bool = False,
    fit: Callable[..., tuple[float, int]] = row_grid,
) -> Decide:
    """Round every column to the grid of its row and group.

    fit_on: (first column of a group, weights now) -> weights [out, in] that its grid is fitted to
    """
    grids: list[tuple[float, int]] = []

    def decide(j: int, W: Array) -> Array:
        if j % group == 0:
            seen = fit_on(j, W)[:, j : j + group]
            grids[:] = [fit(row, bits, symmetric=symmetric) for row in seen]
        stored = np.array(
            [
                rounded(float(w), *grid, bits, symmetric=symmetric)
                for w, grid in zip(W[:, j], grids, strict=True)
            ]
        )
        return stored if mask is None else np.where(mask[:, j], stored, 0)

    return decide


def lagging(block: int) -> Callable[[int, Array], Array]:
    """Weights as they were when the block of columns began: what the published code fits to."""
    kept: dict[int, Array] = {}

    def seen(j: int, W: Array) -> Array:
        start = j - j % block
        if j == start:
            kept[start] = W.copy()
        return kept[start]

    return seen


def layer_error(D: Array, H: Array) -> float:
    """tr(D H D^T)."""
    return float(np.einsum("ij,jk,ik->", D, H, D))


def masked_least_squares(W: Array, H: Array, mask: Mask) -> Array:
    """The best values under a mask: one dense solve a row."""
    found = np.zeros_like(W)
    for i in range(len(W)):
        free = np.flatnonzero(mask[i])
        found[i, free] = np.linalg.solve(H[np.ix_(free, free)], H[free] @ W[i])
    return found
