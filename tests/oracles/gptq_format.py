"""The GPTQ checkpoint layout read and written one number at a time, as a string of bits."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.int32]
Array = NDArray[np.float64]


def words_of(values: Sequence[int], bits: int) -> list[int]:
    """Values as signed 32-bit words, the first value in the lowest bits of the first word."""
    number = sum(value << (place * bits) for place, value in enumerate(values))
    data = number.to_bytes(len(values) * bits // 8, "little")
    return [int(word) for word in np.frombuffer(data, dtype="<i4")]


def values_of(words: Sequence[int], bits: int) -> list[int]:
    """Inverse of `words_of`."""
    number = int.from_bytes(np.array(words, dtype="<i4").tobytes(), "little")
    return [(number >> (place * bits)) % 2**bits for place in range(len(words) * 32 // bits)]


def encode(
    codes: Sequence[Sequence[int]],
    zeros: Sequence[Sequence[int]],
    bits: int,
    subtracted: int,
) -> tuple[Words, Words]:
    """(qweight, qzeros) of codes [out, in] and zero points [groups, out].

    subtracted: from every zero point before it is stored
    """
    columns = [words_of(row, bits) for row in codes]
    qzeros = [words_of([(z - subtracted) % 2**bits for z in row], bits) for row in zeros]
    return np.array(columns, dtype=np.int32).T, np.array(qzeros, dtype=np.int32)


def decode(
    qweight: Words, qzeros: Words, scales: Array, g_idx: Sequence[int], bits: int, added: int
) -> Array:
    """scale * (code - zero point) of every weight.  added: to a stored zero point  -> [out, in]"""
    out, d_in = scales.shape[1], len(g_idx)
    zeros = [values_of([int(word) for word in row], bits) for row in qzeros]
    W = np.zeros((out, d_in))
    for i in range(out):
        codes = values_of([int(word) for word in qweight[:, i]], bits)
        for j in range(d_in):
            group = g_idx[j]
            W[i, j] = scales[group, i] * (codes[j] - (zeros[group][i] + added) % 2**bits)
    return W
