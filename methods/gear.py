"""GEAR: keys and values as codes, a low rank and outliers, X ~ D + L + S (arXiv:2403.05527).

1. S = Filter_s(X): the largest and the smallest s/2 of every vector (eq. 4)
2. D = Quant_b(X - S), uniform, 2^b - 1 steps between smallest and largest (eq. 3)
3. R = X - D - S, head by head; L = A B^T = SVDSolver_r(R) by power iteration (algorithm 2)

Vectors are the channels of keys and the positions of values (section 3, KCVT).  New positions wait
as floats until n_b of them are there (the streaming buffer), and are then compressed together.

Differs from the paper: a prompt is compressed n_b positions at a time too, with one rank, so that
what a position sees does not depend on where a prompt ended; the paper takes a prompt whole, with
rank 4 and with 2 behind it.  Filtered entries count with neither end when codes are made, and a
vector keeps at least one at each end, whatever s.  Values share a scale within a head, not over all
of them.  The iteration's vectors are made orthonormal in every loop, not in the last alone: they
span the same, and do not overflow.  Its code passes b^2 - 1 steps in one place, which is 2^b - 1
at 2 and 4 bits only.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from trinity.methods.contract import MethodConfig
from trinity.methods.formats import CacheFormat, cache_codes


class GearConfig(MethodConfig):
    """Defaults are the paper's for 2 bits, with the one rank that is its prompt's.

    bits: of a code   rank: of the rounding error of a head; 0 leaves it out
    outliers: share s of every vector kept as it is, half at each end; 0 leaves them out (GEAR-L)
    buffer: n_b, positions that are compressed together
    loops: of the power iteration   seed: of its start
    """

    bits: Literal[2, 3, 4, 8] = 2
    rank: Annotated[int, Field(ge=0)] = 4
    outliers: Annotated[float, Field(ge=0, lt=0.5)] = 0.02
    buffer: Annotated[int, Field(ge=2)] = 64
    loops: PositiveInt = 3
    seed: int = 0


def filtered(X: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The sparse S, and where it is (eq. 4).  X: [..., n], vectors on the last axis

    count: entries at each end   -> S [..., n], 0 elsewhere, in float16's numbers; bool [..., n]
    """
    if count == 0:
        return torch.zeros_like(X), torch.zeros_like(X, dtype=torch.bool)
    ends = [X.topk(count, dim=-1, largest=largest).indices for largest in (True, False)]
    kept = torch.zeros_like(X, dtype=torch.bool).scatter(-1, torch.cat(ends, -1), value=True)
    return torch.where(kept, X.half().float(), 0), kept


def quantized(X: Tensor, kept: Tensor, bits: int) -> Tensor:
    """D of what was not filtered (eq. 3); 0 where it was.  X: [..., n]  kept: bool [..., n]"""
    # Any number within the others' range leaves the range alone.
    inside = X.masked_fill(kept, -torch.inf).amax(-1, keepdim=True)
    D = cache_codes(torch.where(kept, inside, X), bits).dequantize()
    return D.masked_fill(kept, 0)


def low_rank(R: Tensor, rank: int, loops: int, seed: int) -> Tensor:
    """L = A B^T by power iteration (algorithm 2).  R: [..., n, d]  ->  [..., n, d]

    The factors are rounded to float16, which they are stored in.
    """
    n, d = R.shape[-2:]
    generator = torch.Generator("cpu").manual_seed(seed)
    B = torch.empty(d, min(rank, n, d), device="cpu").normal_(generator=generator).to(R.device)
    for _ in range(loops - 1):
        B = R.mT @ (R @ torch.linalg.qr(B).Q)
    A: Tensor = torch.linalg.qr(R @ torch.linalg.qr(B).Q).Q
    B = R.mT @ A
    return A.half().float() @ B.half().float().mT


def backbone(X: Tensor, shared: int, config: GearConfig) -> Tensor:
    """D + S, of vectors on the last axis.  X: [..., n]

    shared: consecutive entries that share a scale
    """
    S, kept = filtered(X, _format(config).at_an_end(X.shape[-1]))
    groups = X.reshape(*X.shape[:-1], -1, shared)
    D = quantized(groups, kept.view(groups.shape), config.bits)
    return D.view(X.shape) + S


def compressed(X: Tensor, made: Tensor, config: GearConfig) -> Tensor:
    """D + S + L.  X, made (D + S): [batch, heads, positions, width]"""
    return made + low_rank(X - made, config.rank, config.loops, config.seed)


def _format(config: GearConfig) -> CacheFormat:
    return CacheFormat(config.bits, config.buffer, config.outliers, config.rank)


class _Gear:
    """In torch only: compiled modules refuse such a cache by name."""

    name = "gear"
    paper = "arXiv:2403.05527"
    config = GearConfig

    def cache_problem(self, width: int, config: GearConfig) -> str | None:
        if config.rank >= min(width, config.buffer):
            return f"rank {config.rank} is no low one of {config.buffer} positions of {width}"
        return None

    def cache_format(self, config: GearConfig) -> CacheFormat:
        return _format(config)

    def rounded_cache(
        self, keys: Tensor, values: Tensor, config: GearConfig
    ) -> tuple[Tensor, Tensor]:
        batch, heads, positions, width = values.shape
        K = backbone(keys.mT, positions, config).mT
        # Filtered over all heads of a position, [batch, positions, heads * width].
        V = backbone(values.transpose(1, 2).flatten(2), width, config)
        V = V.view(batch, positions, heads, width).transpose(1, 2)
        return compressed(keys, K, config), compressed(values, V, config)


GEAR = _Gear()
