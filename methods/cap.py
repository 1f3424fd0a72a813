"""CAP: prune with weight updates by how gradients correlate (Kuznedelev et al., arXiv:2210.09223).

The loss near W is taken as a quadratic form of the empirical Fisher matrix, which is block-diagonal
over runs of B weights of a row:

    F = lambda I + 1/m sum_k g_k g_k^T,     g_k: gradient of the loss of sample k, k = 1..m.

In every block the weight goes whose removal costs least, w_p^2 / (2 [F^-1]_pp), and the others move
to where the loss is least without it (Optimal Brain Surgeon):

    w -= w_p / [F^-1]_pp F^-1_:p        F^-1 -= F^-1_:p F^-1_p: / [F^-1]_pp

again and again.  How far a block goes is decided for the layer: what all blocks together lose is
what the sparsity says, least first by what the loss has grown to.  N:M takes from groups of M that
have more than N left, until none has.

Differs from the published code, which prunes vision models:
- Sparsity is a layer's, where the code can take one for the model: a method sees a layer at a time.
- lambda is a share of the layer's mean squared gradient, where the code adds 1e-7 or 1e-8 to any.
- The weights after every removal are not stored.  The removals are done twice: once to learn what
  each costs, and as far as each block goes.
- F is inverted as a whole, not updated gradient by gradient; in float64.
- Blocks are runs of a row, the last of a row shorter if it must be.  The code cuts the flat weight.
- Exactly floor(sparsity * weights) go, where the code rounds up and takes ties beyond.
"""

from collections.abc import Iterator

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, CompressedWeight, Dense, Sparse
from trinity.methods.options import PatternOption
from trinity.methods.tensors import lowest_removed, pattern_problem

AT_ONCE = 1 << 23  # numbers of all inverses that are in memory together: 64 MB


class CapConfig(MethodConfig):
    """The paper has blocks of 50 to 192 and 1024 to 4096 samples; fewer samples need smaller ones.

    pattern: N:M, or an unstructured sparsity that the layer as a whole reaches
    block_size: weights of a row whose gradients' correlations count
    damping: lambda, as a share of the layer's mean squared gradient
    """

    pattern: PatternOption
    block_size: PositiveInt = 32
    damping: PositiveFloat = 0.1


def inverses(G: Tensor, damping: float) -> Tensor:
    """F^-1 of every block.  G: [m, blocks, B], float64   damping: lambda  ->  [blocks, B, B]"""
    by_block = G.transpose(0, 1)
    F = by_block.transpose(1, 2) @ by_block / len(G)
    F.diagonal(dim1=1, dim2=2).add_(damping)
    L, failed = torch.linalg.cholesky_ex(F)
    if bool(failed.any()):
        msg = (
            "cap: the gradients' second moments are not positive definite in float64. Raise "
            "cap.damping."
        )
        raise ConfigError(msg)
    return torch.cholesky_inverse(L)


def removable(kept: Tensor, pattern: NM) -> Tensor:
    """Weights of groups that have more than N left.  kept: bool [blocks, B]  ->  the same"""
    groups = kept.view(len(kept), -1, pattern.m)
    return (groups & (groups.sum(-1, keepdim=True) > pattern.n)).view_as(kept)


def prune(
    W: Tensor, F_inv: Tensor, counts: Tensor, pattern: NM | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Remove some weights of every block, one after the other, and move the others.

    W: [blocks, B]   F_inv: [blocks, B, B], used up   counts: int64 [blocks], how many go
    ->  W, the mask (bool [blocks, B], True keeps), and what the loss has grown by with each
        removal, in their order: [blocks, B], beyond a block's count without meaning
    """
    W, blocks = W.clone(), torch.arange(len(W), device=W.device)
    kept, grown = torch.ones_like(W, dtype=torch.bool), torch.zeros_like(W)
    total = W.new_zeros(len(W))
    for step in range(int(counts.max())):
        going = step < counts
        free = kept if pattern is None else removable(kept, pattern)
        cost = W.square() / (2 * F_inv.diagonal(dim1=1, dim2=2))
        least, p = cost.masked_fill_(~free, torch.inf).min(1)
        total += least
        grown[:, step] = total
        row = F_inv[blocks, p]
        share = torch.where(going, 1 / row[blocks, p], 0.0)
        W -= (share * W[blocks, p])[:, None] * row
        F_inv.baddbmm_((share[:, None] * row)[:, :, None], row[:, None, :], alpha=-1)
        kept[blocks, p] &= ~going
        W.masked_fill_(~kept, 0)  # exactly, and again what rounding moved
    return W, kept, grown


def tiles(shape: tuple[int, int], block_size: int) -> Iterator[tuple[slice, slice]]:
    """Rows and a run of inputs: blocks of one size, as many as are pruned at once."""
    out, d_in = shape
    for first in range(0, d_in, block_size):
        columns = slice(first, min(first + block_size, d_in))
        rows = max(1, AT_ONCE // (columns.stop - first) ** 2)
        for row in range(0, out, rows):
            yield slice(row, min(row + rows, out)), columns


def compress(current: Dense, gradients: Tensor, config: CapConfig) -> Sparse:
    """Prune a layer.  gradients: [samples, out, in]"""
    W, pattern = current.dequantize().double().contiguous(), config.pattern
    squares = sum(float(g.double().square().mean()) for g in gradients) / len(gradients)
    # Of a layer without gradients, every weight costs its square.
    damping = config.damping * squares or 1.0
    grouped = pattern if isinstance(pattern, NM) else None

    def pruned(at: tuple[slice, slice], counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        F_inv = inverses(gradients[:, *at].double(), damping)
        return prune(W[at], F_inv, counts, grouped)

    every = torch.ones_like(W, dtype=torch.bool)
    if isinstance(pattern, NM):
        # As many of every group; which of them, is found below.
        removed = every & (torch.arange(W.shape[1], device=W.device) % pattern.m >= pattern.n)
    else:
        grown = torch.empty_like(W)
        for at in tiles(current.shape, config.block_size):
            grown[at] = pruned(at, every[at].sum(1))[2]
        # Within a block the loss only grows, so what is below the limit is how far it goes.
        count = int(pattern.sparsity * W.numel())
        removed = ~lowest_removed(grown.view(1, -1), count).view_as(W)
    kept = torch.empty_like(removed)
    for at in tiles(current.shape, config.block_size):
        W[at], kept[at], _ = pruned(at, removed[at].sum(1))
    return Sparse(Dense(W.to(current.values.dtype)), kept, pattern)


def problem(shape: tuple[int, int], config: CapConfig) -> str | None:
    """Why a layer [out, in] cannot be pruned, or None."""
    pattern = config.pattern
    if isinstance(pattern, NM) and config.block_size % pattern.m:
        return f"block_size {config.block_size} is no multiple of the pattern's {pattern.m}"
    return pattern_problem(shape, pattern)


class _Cap:
    name = "cap"
    paper = "arXiv:2210.09223"
    config = CapConfig
    needs = Statistic.GRADIENTS

    def problem(self, shape: tuple[int, int], config: CapConfig) -> str | None:
        return problem(shape, config)

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: CapConfig
    ) -> CompressedWeight:
        if not isinstance(current, Dense):
            msg = (
                f"cap: an earlier step already made this weight {type(current).__name__.lower()}, "
                f"and pruning moves the weights that are kept. Prune first."
            )
            raise ConfigError(msg)
        if found := problem(current.shape, config):
            raise ConfigError(f"cap: {found}.")
        if stats.gradients is None:
            msg = "cap: needs gradients of the loss; the recipe has no calibration data."
            raise ConfigError(msg)
        return compress(current, stats.gradients, config)


CAP = _Cap()
