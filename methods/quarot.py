"""QuaRot, its offline part: no channel of the residual stream is an outlier (arXiv:2404.00456).

The stream is turned by Q = diag(s) H / sqrt(n), H a Hadamard matrix and s random signs (sec. 4.1,
stage 1a).  Every channel becomes a sum of all, so what was large in a few is spread evenly, in the
inputs of the linears that read the stream and in their weights.  It rounds nothing: a recipe adds
weights (`gptq`, `rtn`) and inputs (`compress.inputs`) of few bits.

Not here: what turns values within heads (stage 1b), and all that is computed as the model runs,
which are the Hadamard transforms of the inputs of output and down projections, and of queries and
keys.  `kind: orthogonal` is the paper's random orthogonal matrix, for comparison.
"""

from typing import Literal

import torch
from torch import Tensor

from trinity.methods.contract import MethodConfig
from trinity.methods.errors import ConfigError


class QuarotConfig(MethodConfig):
    """Defaults are the paper's.

    kind: a 'hadamard' matrix with random signs, or a random 'orthogonal' one
    seed: of the signs, or of the matrix
    """

    kind: Literal["hadamard", "orthogonal"] = "hadamard"
    seed: int = 0


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


def hadamard(n: int) -> Tensor | None:
    """Entries 1 and -1, rows orthogonal: the smallest known one, doubled.  -> [n, n], or None"""
    odd = n // (n & -n)
    size = odd
    H = torch.ones(1, 1, device="cpu") if odd == 1 else None
    while H is None and size < n:
        size *= 2
        H = paley(size)
    if H is None:
        return None
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device="cpu")
    while len(H) < n:
        H = torch.kron(pair, H)
    return H


class _Quarot:
    """Costs a product of every weight with Q, each time that a block is read."""

    name = "quarot"
    paper = "arXiv:2404.00456"
    config = QuarotConfig

    def problem(self, width: int, config: QuarotConfig) -> str | None:
        if config.kind == "hadamard" and hadamard(width) is None:
            return f"no Hadamard matrix of {width} rows is known here (use `kind: orthogonal`)"
        return None

    def rotation(self, width: int, config: QuarotConfig) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(config.seed)
        if config.kind == "orthogonal":
            drawn = torch.empty(width, width, dtype=torch.float64, device="cpu")
            Q, R = torch.linalg.qr(drawn.normal_(generator=generator))
            signs = R.diagonal().sign()  # without them Q is not uniform
            return torch.mul(Q, signs).float()
        H = hadamard(width)
        if H is None:
            raise ConfigError(f"quarot: {self.problem(width, config)}.")
        signs = torch.empty(width, 1, device="cpu").bernoulli_(generator=generator) * 2 - 1
        return torch.mul(H, signs / width**0.5)


QUAROT = _Quarot()
