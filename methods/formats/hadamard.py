"""Hadamard matrices, and products with them that take fewer steps than a matrix product.

Entries are 1 and -1 and rows are orthogonal.  The smallest known one of n / 2^k rows is doubled k
times, H_2n = [[H, H], [H, -H]] (Sylvester), so a product with H_n is one with the small matrix and
k rounds of sums and differences.
"""

import torch
from torch import Tensor


def is_prime(n: int) -> bool:
    """By division: n is a model's width."""
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def residues(q: int) -> Tensor:
    """chi(i - j): 1 for squares modulo the prime q, 0 on the diagonal, else -1.  -> [q, q]"""
    chi = torch.full((q,), -1.0, device="cpu")
    chi[[i * i % q for i in range(1, q)]] = 1
    chi[0] = 0
    places = torch.arange(q, device="cpu")
    return chi[(places[:, None] - places) % q]


def paley(n: int) -> Tensor | None:
    """A Hadamard matrix by one of Paley's two constructions, of primes.  -> [n, n], or None"""
    if is_prime(n - 1) and n % 4 == 0:
        S = torch.nn.functional.pad(residues(n - 1), (1, 0, 1, 0))
        S[0, 1:], S[1:, 0] = 1, -1
        return S + torch.eye(n, device="cpu")
    if n % 4 == 0 and is_prime(n // 2 - 1) and n // 2 % 4 == 2:
        C = torch.nn.functional.pad(residues(n // 2 - 1), (1, 0, 1, 0))
        C[0, 1:], C[1:, 0] = 1, 1
        pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device="cpu")
        turned = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], device="cpu")
        return torch.kron(C, pair) + torch.kron(torch.eye(n // 2, device="cpu"), turned)
    return None


def core(n: int) -> Tensor | None:
    """The smallest known matrix that n rows are a doubling of.  -> [m, m], or None"""
    odd = n // (n & -n)
    if odd == 1:
        return torch.ones(1, 1, device="cpu")
    size = 2 * odd
    while size <= n:
        if (H := paley(size)) is not None:
            return H
        size *= 2
    return None


def hadamard(n: int) -> Tensor | None:
    """Entries 1 and -1, rows orthogonal.  -> [n, n], or None"""
    H = core(n)
    if H is None:
        return None
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device="cpu")
    while len(H) < n:
        H = torch.kron(pair, H)
    return H


def turned(x: Tensor, n: int) -> Tensor:
    """Every n consecutive entries times H_n / sqrt(n).  x: [..., k * n], floats -> the same"""
    H = core(n)
    assert H is not None  # whoever asks for it has looked
    small = len(H)
    rows = x.reshape(-1, n // small, small) @ H.to(x.device, x.dtype)
    half = 1
    while half < n // small:  # pairs of rows, `half` apart
        pairs = rows.view(-1, n // small // (2 * half), 2, half, small)
        first, second = pairs.unbind(2)
        rows = torch.stack([first + second, first - second], dim=2)
        half *= 2
    return torch.div(rows, n**0.5).reshape(x.shape)
