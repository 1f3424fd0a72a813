"""Keys and values as codes, a number at a time, and the planes that kernels keep them in."""

import math

import numpy as np
import torch
from torch import Tensor


def half(number: float) -> float:
    """The nearest float16."""
    return float(np.float16(number))


def single(number: float) -> float:
    """The nearest float32."""
    return float(np.float32(number))


def coded(numbers: list[float], bits: int) -> tuple[list[int], float, float]:
    """Codes, scale and minimum of numbers that share them, as float32 computes them."""
    low, high = min(numbers), max(numbers)
    scale, minimum = half(single(single(high - low) / (2**bits - 1))), half(low)
    codes = []
    for number in numbers:
        place = single(single(number - minimum) / scale) if scale else 0.0
        below = math.floor(place)
        nearest = below + (place - below > 0.5 or (place - below == 0.5 and below % 2 == 1))
        codes.append(max(0, min(2**bits - 1, nearest)))
    return codes, scale, minimum


def decoded(codes: list[int], scale: float, minimum: float) -> list[float]:
    """What attention reads, in float64."""
    return [minimum + scale * code for code in codes]


def rounded(x: Tensor, bits: int) -> Tensor:
    """Every vector of the last axis by itself.  -> float64"""
    rows = [decoded(*coded(row, bits)) for row in x.float().reshape(-1, x.shape[-1]).tolist()]
    return torch.tensor(rows, dtype=torch.float64).view(x.shape)


def planes(x: Tensor, bits: int) -> Tensor:
    """[heads, positions, width] as a module keeps it: scales, minima, codes.  -> uint8 [bytes]"""
    rows = [coded(row, bits) for row in x.reshape(-1, x.shape[-1]).tolist()]
    shares = np.array([[of[1] for of in rows], [of[2] for of in rows]], dtype="<f2").tobytes()
    width, found = x.shape[-1], bytearray()
    for codes, _, _ in rows:
        pairs = zip(codes[: width // 2], codes[width // 2 :], strict=True)
        found += bytes(codes if bits == 8 else [low | high << 4 for low, high in pairs])
    return torch.frombuffer(bytearray(shares) + found, dtype=torch.uint8)


def from_planes(stored: Tensor, shape: tuple[int, int, int], bits: int) -> Tensor:
    """Inverse of `planes`, in numbers.  -> float64 [heads, positions, width]"""
    heads, positions, width = shape
    data, count = stored.numpy().tobytes(), heads * positions
    shares = np.frombuffer(data[: 4 * count], dtype="<f2").astype(np.float64).reshape(2, count)
    row, found = width * bits // 8, []
    for i in range(count):
        own = list(data[4 * count + i * row :][:row])
        codes = own if bits == 8 else [b & 15 for b in own] + [b >> 4 for b in own]
        found.append([shares[1, i] + shares[0, i] * code for code in codes])
    return torch.tensor(found, dtype=torch.float64).view(shape)
