"""Steps that several methods share: masks, grids, low-rank factors."""

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, CompressedWeight, Dense, Pattern, Quantized, Sparse
from trinity.methods.formats.quantized import code_range


def nm_mask(scores: Tensor, pattern: NM) -> Tensor:
    """Keep the `n` highest scores of every `m` consecutive inputs; ties keep the lower column.

    scores: [out, in]  ->  bool [out, in], True keeps
    """
    out, d_in = scores.shape
    if problem := pattern_problem((out, d_in), pattern):
        raise ConfigError(f"{problem}.")
    groups = scores.view(out, d_in // pattern.m, pattern.m)
    kept = groups.sort(dim=-1, descending=True, stable=True).indices[..., : pattern.n]
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(-1, kept, True).view(out, d_in)


def lowest_removed(scores: Tensor, count: int) -> Tensor:
    """Remove exactly the `count` lowest scores of every row; ties keep the lower column.

    scores: [rows, columns]  ->  bool [rows, columns], True keeps
    """
    kept = scores.sort(dim=-1, descending=True, stable=True).indices[:, : scores.shape[1] - count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, kept, True)


def pattern_problem(shape: tuple[int, int], pattern: Pattern) -> str | None:
    """Why a pattern does not fit a layer, or None."""
    if isinstance(pattern, NM) and shape[1] % pattern.m:
        return f"pattern {pattern} does not divide in = {shape[1]}"
    return None


def masked(current: CompressedWeight, mask: Tensor, pattern: Pattern, method: str) -> Sparse:
    """The current weight with a mask on top; refused where it is sparse or adapted already."""
    if isinstance(current, (Dense, Quantized)):
        return Sparse(current, mask, pattern)
    msg = (
        f"{method}: an earlier step already made this weight {type(current).__name__.lower()}. "
        f"Prune once, and before the step that adds adapters."
    )
    raise ConfigError(msg)


def requantized(current: CompressedWeight, quantized: Quantized, method: str) -> Quantized | Sparse:
    """The quantized values in place of the current floats, under the same mask."""
    if isinstance(current, Dense):
        return quantized
    if isinstance(current, Sparse) and isinstance(current.values, Dense):
        return Sparse(quantized, current.mask, current.pattern)
    msg = (
        f"{method}: an earlier step already quantized this weight or gave it adapters. "
        f"Quantize once, and before the step that adds adapters."
    )
    raise ConfigError(msg)


def quantize(W: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int) -> Quantized:
    """Round to the nearest code, half to even, of a given grid.

    W: [out, in]  scale, zero_point: [1 | out, groups]
    """
    out, d_in = W.shape
    low, high = code_range(bits, zero_point is None)
    groups = W.float().view(out, scale.shape[1], d_in // scale.shape[1])
    codes = torch.round(groups / scale.float()[:, :, None])
    if zero_point is not None:
        codes = codes + zero_point.float()[:, :, None]
    dtype = torch.int8 if zero_point is None else torch.uint8
    return Quantized(codes.clamp(low, high).to(dtype).view(out, d_in), scale, zero_point, bits)


def low_rank(E: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` approximation of E in the Frobenius norm (Eckart-Young), as B @ A.

    E: [out, in]  ->  B: [out, rank] with orthonormal columns, A: [rank, in] holding the singular
        values
    """
    U, S, Vh = torch.linalg.svd(E, full_matrices=False)
    return U[:, :rank].contiguous(), S[:rank, None] * Vh[:rank]
