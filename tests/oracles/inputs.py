"""8-bit floats and integers from their definitions, one number at a time."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def float8_numbers(exponent_bits: int, mantissa_bits: int, largest: float) -> list[float]:
    """Every non-negative number of a binary format, subnormals included, up to its largest."""
    bias = 2 ** (exponent_bits - 1) - 1
    found = set()
    for exponent in range(2**exponent_bits):
        for mantissa in range(2**mantissa_bits):
            fraction = mantissa / 2**mantissa_bits
            if exponent == 0:
                found.add(fraction * 2.0 ** (1 - bias))
            else:
                found.add((1 + fraction) * 2.0 ** (exponent - bias))
    return sorted(v for v in found if v <= largest)


E4M3 = float8_numbers(4, 3, 448.0)
E5M2 = float8_numbers(5, 2, 57344.0)


def nearest_distance(value: float, numbers: list[float]) -> float:
    """From |value| to the nearest of some numbers."""
    return min(abs(abs(value) - number) for number in numbers)


def int8_rounded(x: Array, group: int) -> Array:
    """Each run of `group` entries of the last axis, rounded with its own AbsMax scale."""
    flat = x.reshape(-1, group)
    found = np.zeros(flat.shape)
    for i, line in enumerate(flat):
        scale = max(abs(float(v)) for v in line) / 127 or 1.0
        found[i] = [scale * max(-128, min(127, round(float(v) / scale))) for v in line]
    return found.reshape(x.shape)
