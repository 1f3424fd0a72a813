"""Uniform grids and bit packing, one number at a time."""

from collections.abc import Callable, Sequence
from math import floor

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Codes = NDArray[np.int64]


def decode(
    codes: Codes, scale: Array, zero_point: Codes | None, index: Sequence[int] | None = None
) -> Array:
    """scale * (code - zero_point), with the scale of the row and of the group of inputs.

    index: the group of every input; consecutive inputs without it
    """
    out, d_in = codes.shape
    rows, groups = scale.shape
    W = np.zeros((out, d_in))
    for i in range(out):
        for j in range(d_in):
            at = (i if rows > 1 else 0, index[j] if index is not None else j // (d_in // groups))
            zero = 0 if zero_point is None else int(zero_point[at])
            W[i, j] = float(scale[at]) * (int(codes[i, j]) - zero)
    return W


def nearest_on_grid(w: float, scale: float, zero_point: int, low: int, high: int) -> float:
    """The distance from w to the nearest point of a grid, found by trying every code."""
    return min(abs(scale * (code - zero_point) - w) for code in range(low, high + 1))


def pack_row(codes: Sequence[int], bits: int) -> list[int]:
    """Codes as one long string of bits, the first code in the lowest, cut into bytes."""
    number = 0
    for position, code in enumerate(codes):
        number |= code << (position * bits)
    return list(number.to_bytes((len(codes) * bits + 7) // 8, "little"))


def clipping_error(W: Array, alpha: float, bits: int) -> float:
    """Squared Frobenius error of the symmetric quantizer whose largest code stands for alpha."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = alpha / high
    error = 0.0
    for w in W.flatten():
        code = max(low, min(high, round(float(w) / scale)))
        error += (code * scale - float(w)) ** 2
    return error


def best_alpha(error: Callable[[float], float], largest: float, steps: int) -> tuple[float, float]:
    """The best of `steps` evenly spaced alphas in (0, largest], and its error."""
    alphas = [largest * (k + 1) / steps for k in range(steps)]
    errors = [error(alpha) for alpha in alphas]
    best = int(np.argmin(errors))
    return alphas[best], errors[best]


def slim_histogram(W: Array) -> tuple[Array, Array]:
    """Bin centres and density of |W| as SLiM's appendix T counts bins."""
    magnitudes = np.abs(W).flatten()
    bins = max(512, min(len(magnitudes) // 1000, 20000))
    density, edges = np.histogram(magnitudes, bins=bins, density=True)
    return (edges[:-1] + edges[1:]) / 2, density


def slim_loss(i: int, v: Array, p: Array, bits: int) -> float:
    """J(i) of SLiM's code: floored steps of v_i / 2^bits below bin i, clipping from bin i on."""
    alpha = float(v[i])
    step = alpha / 2**bits
    total = 0.0
    for k in range(len(v)):
        if k < i:
            total += p[k] * (v[k] - step * floor(v[k] / step)) ** 2
        else:
            total += p[k] * (v[k] - alpha) ** 2
    return float(total * (v[1] - v[0]))


def slim_search(v: Array, p: Array, bits: int) -> int:
    """SLiM's two passes: every tenth of the bins, then all bins between the neighbours of the best.

    The published code leaves the second pass empty when the best of the first is its last entry;
    here the range then ends with the histogram.
    """
    coarse = list(range(0, len(v), len(v) // 10))
    best = min(range(len(coarse)), key=lambda c: slim_loss(coarse[c], v, p, bits))
    first = coarse[max(best - 1, 0)]
    last = coarse[best + 1] if best + 1 < len(coarse) else len(v)
    return min(range(first, last), key=lambda i: slim_loss(i, v, p, bits))


def tile_absmax(M: Array, rows: int, columns: int, bits: int) -> Array:
    """M rounded with one AbsMax scale for every tile of rows x columns, in float64 loops."""
    largest_code = 2 ** (bits - 1) - 1
    found = np.zeros(M.shape)
    for i in range(0, M.shape[0], rows):
        for j in range(0, M.shape[1], columns):
            tile = M[i : i + rows, j : j + columns]
            largest = float(np.abs(tile).max())
            if largest == 0:
                continue
            step = largest / largest_code
            found[i : i + rows, j : j + columns] = [
                [step * round(float(v) / step) for v in line] for line in tile
            ]
    return found
