"""PATCH's masks: dense tiles and 2:4 tiles, learned together (arXiv:2509.23410).

    M = M_tile + (1 - M_tile) * M_24                                     1 keeps
    M_24 = sum_k pi_k pattern_k,  pi = softmax((kappa P + gumbel) / tau)  P: [groups, 6]
    M_tile = softmax(([0, kappa T] + gumbel) / tau), class 1              T: one for each tile

Tensors only.  `kappa` and `tau` are linear in the step, so that soft masks end up hard.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trinity.methods.formats import NM, tiles
from trinity.methods.tensors import nm_mask

TWO_FOUR = NM(2, 4)
# The code's order: 1100, 1010, 1001, 0110, 0101, 0011.
PATTERNS = torch.tensor(
    [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]],
    dtype=torch.float32,
)
DEVIATION = 0.014  # of the random logits, and the unit of a prior's


@dataclass(eq=False)
class Logits:
    """What is learned of one layer.

    P: float32 [out * in / 4, 6], of the patterns of every group, or None where they are `fixed`
    T: float32, as `tiles.grid`, of dense against 2:4, or None where every tile is 2:4
    fixed: bool [out, in], the 2:4 mask where it is not learned
    started: bool, as `tiles.grid`, which tiles were dense before the first step; as T
    """

    shape: tuple[int, int]
    size: int
    P: Tensor | None
    T: Tensor | None
    fixed: Tensor | None = None
    started: Tensor | None = None

    @property
    def turned(self) -> int:
        """Tiles that are not what they were before the first step."""
        if self.T is None or self.started is None:
            return 0
        return int(((self.T > 0) != self.started).sum())

    @property
    def parameters(self) -> list[Tensor]:
        """Those that are there."""
        return [logits for logits in (self.P, self.T) if logits is not None]


def gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Samples of the standard Gumbel distribution, where the generator is."""
    tiny = torch.finfo(torch.float32).tiny
    uniform = torch.rand(shape, generator=generator, device=generator.device).clamp_min(tiny)
    exponential = -torch.log(uniform)
    return -torch.log(exponential.clamp_min(tiny))


def soft_two_four(P: Tensor, shape: tuple[int, int], noise: Tensor, scaled: float) -> Tensor:
    """M_24, differentiable; the noise comes after the scale (the code).  -> [out, in]

    P: [groups, 6], times kappa   noise: [groups, 6]   scaled: tau
    """
    pi = torch.softmax((P + noise) / scaled, -1)
    return (pi @ PATTERNS.to(P.device)).view(shape)


def soft_tiles(T: Tensor, noise: Tensor, scaled: float) -> Tensor:
    """Probability of the dense class, [0, T] in the code's order.  T: times kappa

    noise: the difference of both classes' noise, of the shape of T
    """
    return torch.sigmoid((T + noise) / scaled)


def soft_mask(
    logits: Logits,
    kappas: tuple[float, float],
    tau: float,
    generator: torch.Generator | None,
) -> Tensor:
    """M, differentiable in the logits.  -> [out, in], in [0, 1]

    kappas: of patterns and of tiles   generator: of the noise, on the logits' device; or None
    """
    if logits.P is None:
        assert logits.fixed is not None
        two_four = logits.fixed.float()
    else:
        noise = _noise(logits.P, generator)
        two_four = soft_two_four(kappas[0] * logits.P, logits.shape, noise, tau)
    if logits.T is None:
        return two_four
    noise = _noise(logits.T, generator) - _noise(logits.T, generator)
    dense = tiles.expanded(soft_tiles(kappas[1] * logits.T, noise, tau), logits.shape, logits.size)
    return dense + (1 - dense) * two_four


def hard_mask(logits: Logits) -> Tensor:
    """What the soft mask tends to without noise: dense iff T > 0, the best pattern.  -> bool"""
    if logits.P is None:
        assert logits.fixed is not None
        two_four = logits.fixed
    else:
        best = PATTERNS.to(logits.P.device).bool()[logits.P.argmax(-1)]
        two_four = best.view(logits.shape)
    if logits.T is None:
        return two_four
    return two_four | tiles.expanded(logits.T > 0, logits.shape, logits.size)


def random_logits(
    shape: tuple[int, int], size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """P and T of N(0, 0.014), on the CPU.  generator: of the CPU"""
    groups = torch.randn(shape[0] * shape[1] // 4, 6, generator=generator, device="cpu")
    of_tiles = torch.randn(tiles.grid(shape, size), generator=generator, device="cpu")
    return DEVIATION * groups, DEVIATION * of_tiles


def pattern_prior(mask: Tensor, strength: float) -> Tensor:
    """P from a one-shot 2:4 mask: (shared kept positions - 1) * deviation * strength.

    mask: bool [out, in] -> [groups, 6]
    """
    overlap = mask.float().view(-1, 4) @ PATTERNS.to(mask.device).T
    return (overlap - 1) * DEVIATION * strength


def tile_prior(mask: Tensor, size: int, density: float, strength: float) -> Tensor:
    """T from an unstructured one-shot mask: dense where it keeps most.

    mask: bool [out, in]   density: rho, of which round(2 N_tiles (rho - 0.5)) tiles are dense
    """
    shape = (mask.shape[0], mask.shape[1])
    rows, columns = tiles.grid(shape, size)
    padding = (0, columns * size - shape[1], 0, rows * size - shape[0])
    kept, there = (
        torch.nn.functional.pad(x, padding).view(rows, size, columns, size).sum((1, 3))
        for x in (mask.float(), torch.ones_like(mask, dtype=torch.float32))
    )
    count = round(2 * rows * columns * (density - 0.5))
    order = (kept / there).flatten().argsort(descending=True, stable=True)
    T = torch.full((rows * columns,), -DEVIATION * strength, device=mask.device)
    T[order[:count]] = DEVIATION * strength
    return T.view(rows, columns)


def magnitude_masks(W: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """The 2:4 mask and the unstructured one of |W|.  W: [out, in] -> two of bool [out, in]"""
    scores = W.abs().float()
    limit = scores.flatten().kthvalue(max(1, round((1 - density) * W.numel()))).values
    return nm_mask(scores, TWO_FOUR), scores > limit


def between(ends: tuple[float, float], done: float) -> float:
    """Linear from one end to the other.  done: 0 to 1"""
    return ends[0] + (ends[1] - ends[0]) * done


def density_term(kept: Tensor, total: int, target: float) -> Tensor:
    """|density - rho|.  kept: sum of soft masks, []"""
    return (kept / total - target).abs()


def magnitude_term(kept: Tensor, whole: Tensor) -> Tensor:
    """Share of the norms that the masks keep; what it is multiplied by is negative.  both: []"""
    return kept / whole


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return torch.zeros_like(like)
    return gumbel(like.shape, generator)
