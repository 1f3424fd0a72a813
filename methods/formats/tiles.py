"""A mask that is dense in some tiles and 2:4 in the others (PATCH, arXiv:2509.23410)."""

import re
from dataclasses import dataclass
from decimal import Decimal
from math import prod

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats.bits import pack_bits, unpack_bits

TILE = 128
N, M, INDEX_BITS = 2, 4, 2
SPELLED = re.compile(r"2:4 in (\d+(?:\.\d+)?)% by (\d+)x(\d+)")


@dataclass(frozen=True)
class Tiles:
    """Tiles of `size` x `size`, each of them dense or 2:4; those at the edges may be smaller.

    share: of all weights, that are in 2:4 tiles; all or none of them is another pattern, or none
    """

    share: float
    size: int = TILE

    def __post_init__(self) -> None:
        """Refuse shares outside the open unit interval, and tiles that cut a group of four."""
        if not 0 < self.share < 1:
            msg = (
                f"tiles: {self.share} of the weights in 2:4 tiles: expected a share between 0 and "
                f"1, both excluded. None is a dense weight, and all of them is '2:4'."
            )
            raise ConfigError(msg)
        if self.size < M or self.size % M:
            msg = f"tiles: {self.size} x {self.size} cuts groups of {M}. Take a multiple of {M}."
            raise ConfigError(msg)

    def __str__(self) -> str:
        """The spelling in a checkpoint, with every digit: `read` is the inverse."""
        share = f"{(Decimal(repr(self.share)) * 100).normalize():f}"
        return f"2:4 in {share}% by {self.size}x{self.size}"

    @property
    def sparsity(self) -> float:
        """Fraction that is zero."""
        return self.share * (1 - N / M)


def read(text: str) -> Tiles | None:
    """The tiles that `str` spelled, None if it is another pattern."""
    found = SPELLED.fullmatch(text.strip())
    if found is None or found[2] != found[3]:
        return None
    return Tiles(float(Decimal(found[1]) / 100), int(found[2]))


def grid(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Tiles along the outputs, and along the inputs."""
    return -(-shape[0] // size), -(-shape[1] // size)


def expanded(of_tiles: Tensor, shape: tuple[int, int], size: int) -> Tensor:
    """Each tile's number at each of its weights, differentiable: [out, in].  of_tiles: as `grid`"""
    wide = of_tiles.repeat_interleave(size, 0).repeat_interleave(size, 1)
    return wide[: shape[0], : shape[1]]


def share_of(sparse: Tensor, shape: tuple[int, int], size: int) -> float:
    """Of all weights, those in sparse tiles.  sparse: bool, as `grid`"""
    return int(expanded(sparse, shape, size).sum()) / prod(shape)


def sparse_tiles(mask: Tensor, size: int) -> Tensor:
    """Which tiles remove something.  mask: bool [out, in] -> bool, as `grid`"""
    rows, columns = grid((mask.shape[0], mask.shape[1]), size)
    padding = (0, columns * size - mask.shape[1], 0, rows * size - mask.shape[0])
    removed = torch.nn.functional.pad(~mask, padding)
    return removed.view(rows, size, columns, size).any(3).any(1)


def check(mask: Tensor, pattern: Tiles) -> None:
    """ConfigError unless every tile is whole or 2:4, and as many are as the pattern says.

    mask: bool [out, in]
    """
    out, d_in = mask.shape
    if d_in % M:
        msg = f"pattern {pattern}: in = {d_in} is not a multiple of {M}."
        raise ConfigError(msg)
    sparse = sparse_tiles(mask, pattern.size)
    groups = expanded(sparse, (out, d_in), pattern.size)[:, ::M]
    wrong = groups & (mask.view(out, -1, M).sum(-1) != N)
    if bool(wrong.any()):
        row, group = (int(i) for i in wrong.nonzero()[0])
        kept = int(mask[row, group * M : group * M + M].sum())
        msg = (
            f"mask: row {row}, inputs {group * M}..{group * M + M - 1} keep {kept} entries in a "
            f"tile that removes some, where each group of {M} keeps {N}."
        )
        raise ConfigError(msg)
    share = share_of(sparse, (out, d_in), pattern.size)
    if share != pattern.share:
        msg = f"mask: {share} of the weights are in 2:4 tiles, where the pattern says {pattern}."
        raise ConfigError(msg)


def pack(mask: Tensor, pattern: Tiles) -> dict[str, Tensor]:
    """A bit for each tile, and in 2:4 tiles two for each kept entry.  mask: bool [out, in]

    Groups come row after row of the weight, those of dense tiles left out.
    """
    shape = (mask.shape[0], mask.shape[1])
    sparse = sparse_tiles(mask, pattern.size)
    groups = mask.view(shape[0], -1, M)[expanded(sparse, shape, pattern.size)[:, ::M]]
    places = torch.arange(M, dtype=torch.uint8, device=mask.device).expand(groups.shape)
    return {
        "weight_tiles": pack_bits(sparse.to(torch.uint8), 1),
        "weight_indices": pack_bits(places[groups].view(1, -1), INDEX_BITS)[0],
    }


def unpack(shape: tuple[int, int], pattern: Tiles, tiles: Tensor, indices: Tensor) -> Tensor:
    """Inverse of `pack`.  tiles, indices: uint8 -> bool [out, in]"""
    _, columns = grid(shape, pattern.size)
    sparse = unpack_bits(tiles, 1, columns).bool()
    where = expanded(sparse, shape, pattern.size)[:, ::M]
    count = int(where.sum())
    places = unpack_bits(indices[None], INDEX_BITS, N * count).view(count, N).long()
    kept = torch.zeros(count, M, dtype=torch.bool, device=tiles.device).scatter_(1, places, True)
    mask = torch.ones(shape[0], shape[1] // M, M, dtype=torch.bool, device=tiles.device)
    mask[where] = kept
    return mask.view(shape)


def mask_of(values: Tensor, size: int) -> Tensor:
    """The mask that a weight's zeros stand for: a tile is 2:4 where each of its groups can be.

    values: [out, in] -> bool [out, in]; of several zeros in a group, the lower columns are kept
    """
    shape = (values.shape[0], values.shape[1])
    kept = (values != 0).view(shape[0], -1, M)
    full = (kept.sum(-1) > N).repeat_interleave(M, 1)
    dense = sparse_tiles(~full, size)
    first = kept.to(torch.uint8).argsort(dim=2, descending=True, stable=True)[..., :N]
    two = torch.zeros_like(kept).scatter_(2, first, True).view(shape)
    return two | expanded(dense, shape, size)
