"""Steps that several methods share: masks, grids, low-rank factors."""

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    NM,
    Adapted,
    CompressedWeight,
    Dense,
    Pattern,
    Quantized,
    Sparse,
    WithOutliers,
)
from trinity.methods.formats.quantized import nearest_codes
from trinity.methods.formats.values import Values

CLIPPED = 0.01  # of the inputs of a sequence, as in JSQ's code
MASKED_AT_ONCE = 1 << 18  # scores that fit a core's cache with what is made of them


def nm_mask(scores: Tensor, pattern: NM) -> Tensor:
    """Keep the `n` highest scores of every `m` consecutive inputs; ties keep the lower column.

    scores: [out, in]  ->  bool [out, in], True keeps
    """
    out, d_in = scores.shape
    if problem := pattern_problem((out, d_in), pattern):
        raise ConfigError(f"{problem}.")
    mask = torch.empty(out, d_in, dtype=torch.bool, device=scores.device)
    rows = max(1, MASKED_AT_ONCE // d_in)
    for some, kept in zip(torch.split(scores, rows), torch.split(mask, rows), strict=True):
        by_place = some.reshape(-1, pattern.m).T.contiguous()
        kept.view(-1, pattern.m).T.copy_(highest_kept(by_place, pattern.n))
    return mask


def highest_kept(scores: Tensor, n: int) -> Tensor:
    """Keep the `n` highest scores along the first axis; ties keep the lower place.

    scores: [m, ...], m below 256  ->  bool [m, ...], True keeps

    Counts who is beaten by how many: sorting many short runs takes far longer.
    """
    beaten = torch.zeros(scores.shape, dtype=torch.uint8, device=scores.device)
    for place in range(len(scores) - 1):
        wins = scores[place] >= scores[place + 1 :]
        beaten[place + 1 :] += wins
        beaten[place] += (~wins).sum(0, dtype=torch.uint8)
    return beaten < n


def lowest_removed(scores: Tensor, count: int) -> Tensor:
    """Remove exactly the `count` lowest scores of every row; ties keep the lower column.

    scores: [rows, columns]  ->  bool [rows, columns], True keeps
    """
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    kept = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    wanted = scores.shape[1] - count
    rows = max(1, MASKED_AT_ONCE // scores.shape[1])
    for some, mask in zip(torch.split(scores, rows), torch.split(kept, rows), strict=True):
        limit = some.kthvalue(count, dim=1, keepdim=True).values
        torch.gt(some, limit, out=mask)
        # More than one score at the limit: the first of them fill up what is wanted.
        for row in (mask.sum(1) < wanted).nonzero().flatten().tolist():
            tied = some[row] == limit[row]
            mask[row] |= tied & (tied.cumsum(0) <= wanted - mask[row].sum())
    return kept


def clipped(X: Tensor) -> Tensor:
    """One sequence's inputs, their largest 1% cut to the smallest magnitude among these.

    X: [seq, in]  ->  the same shape.  At least one input is among the largest.
    """
    count = max(1, int(CLIPPED * X.numel()))
    limit = X.abs().flatten().topk(count, sorted=False).values.min()
    return X.clamp(-limit, limit)


def pattern_problem(shape: tuple[int, int], pattern: Pattern) -> str | None:
    """Why a pattern does not fit a layer, or None."""
    if isinstance(pattern, NM) and shape[1] % pattern.m:
        return f"pattern {pattern} does not divide in = {shape[1]}"
    return None


def masked(current: CompressedWeight, mask: Tensor, pattern: Pattern, method: str) -> Sparse:
    """The current weight with a mask on top; refused where it is sparse or adapted already."""
    if not isinstance(current, (Sparse, WithOutliers, Adapted)):
        return Sparse(current, mask, pattern)
    msg = (
        f"{method}: an earlier step already made this weight {type(current).__name__.lower()}. "
        f"Prune once, and before the step that adds adapters."
    )
    raise ConfigError(msg)


def requantized(current: CompressedWeight, quantized: Values, method: str) -> Values | Sparse:
    """The quantized values (of any kind) in place of the current floats, under the same mask."""
    unquantized(current, method)
    if isinstance(current, Sparse):
        return Sparse(quantized, current.mask, current.pattern)
    return quantized


def unquantized(current: CompressedWeight, method: str) -> Dense | Sparse:
    """The current weight, which holds floats; refused where it is quantized or adapted already."""
    if isinstance(current, Dense) or (
        isinstance(current, Sparse) and isinstance(current.values, Dense)
    ):
        return current
    msg = (
        f"{method}: an earlier step already quantized this weight or gave it adapters. "
        f"Quantize once, and before the step that adds adapters."
    )
    raise ConfigError(msg)


def quantize(W: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int) -> Quantized:
    """Round to the nearest code, half to even, of a given grid.

    W: [out, in]  scale, zero_point: [1 | out, groups]
    """
    return Quantized(nearest_codes(W, scale, zero_point, bits), scale, zero_point, bits)


def low_rank(E: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` approximation of E in the Frobenius norm (Eckart-Young), as B @ A.

    E: [out, in]  ->  B: [out, rank] with orthonormal columns, A: [rank, in] holding the singular
        values
    """
    U, S, Vh = torch.linalg.svd(E, full_matrices=False)
    return U[:, :rank].contiguous(), S[:rank, None] * Vh[:rank]
