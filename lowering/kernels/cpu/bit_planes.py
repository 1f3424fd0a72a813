"""Bits of stored weights: planes of codes that share bytes, bitmaps, runs of kept entries."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plane:
    """Bits `shift` to `shift + bits` of every code."""

    name: str
    bits: int
    shift: int

    @property
    def lanes(self) -> int:
        """Word vectors that share bytes."""
        return 8 // self.bits


def pack_lanes(words: Tensor, plane: Plane) -> Tensor:
    """[panels, words, vectors, bytes] -> [panels, units, vectors, bytes]; the last may be padded"""
    panels, count, vectors, size = words.shape
    words = torch.nn.functional.pad(words, (0, 0, 0, 0, 0, -count % plane.lanes))
    split = words.view(panels, -1, plane.lanes, vectors, size)
    lanes = [split[:, :, lane] << (plane.bits * lane) for lane in range(plane.lanes)]
    return torch.stack(lanes).sum(0).to(torch.uint8)


def unpack_lanes(packed: Tensor, plane: Plane, words: int) -> Tensor:
    """Inverse of `pack_lanes`.  words: without padding"""
    moved = [(packed >> (plane.bits * i)) & (2**plane.bits - 1) for i in range(plane.lanes)]
    return torch.stack(moved, dim=2).flatten(1, 2)[:, :words]


def turned(words: Tensor, outer: int, inner: int) -> Tensor:
    """The 64 entries of word vectors, `outer` runs of `inner`, in the other order."""
    return words.view(*words.shape[:-1], outer, inner).transpose(-1, -2).flatten(-2)


def positions(kept: Tensor) -> Tensor:
    """Which of its word's four entries each kept one is, two a word.

    bool [..., 64] -> uint8 [..., 32]
    """
    places = torch.arange(64, dtype=torch.uint8) % 4
    return places.expand(kept.shape)[kept].view(*kept.shape[:-1], 32)


def from_positions(positions: Tensor) -> Tensor:
    """Inverse of `positions`."""
    kept = torch.zeros(*positions.shape[:-1], 16, 4, dtype=torch.bool)
    places = positions.view(*positions.shape[:-1], 16, 2).to(torch.int64)
    return kept.scatter_(-1, places, True).flatten(-2)


def kept_half(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Entries of which every four keep two: those, and their places, two bits each.

    [out, in], bool [out, in] -> [out, in / 2], int32 [out, in / 4]
    """
    out, d_in = values.shape
    places = (torch.arange(d_in, dtype=torch.int32) % 4).expand(out, d_in)
    first, second = places[mask].view(out, d_in // 4, 2).unbind(-1)
    return values[mask].view(out, d_in // 2), first | second << 2


def whole_of_half(kept: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of `kept_half`, what is not kept as zeros."""
    out, words = places.shape
    own = torch.stack([places & 3, places >> 2 & 3], dim=-1).to(torch.int64)
    values = torch.zeros(out, words, 4, dtype=kept.dtype)
    values.scatter_(-1, own, kept.view(out, words, 2))
    mask = torch.zeros(out, words, 4, dtype=torch.bool).scatter_(-1, own, True)
    return values.flatten(1), mask.flatten(1)


def packed_nibbles(nibbles: Tensor) -> Tensor:
    """int32 [..., n], of 4 bits -> int32 [..., n / 8], the first the lowest"""
    split = nibbles.view(*nibbles.shape[:-1], -1, 8)
    moved = [split[..., i] << 4 * i for i in range(8)]
    return torch.stack(moved).sum(0, dtype=torch.int64).to(torch.int32)


def unpacked_nibbles(words: Tensor) -> Tensor:
    """Inverse of `packed_nibbles`."""
    return torch.stack([words >> 4 * i & 15 for i in range(8)], dim=-1).flatten(-2)


def runs(starts: Tensor, counts: Tensor) -> Tensor:
    """Where the entries of runs stand, one run behind another.  -> int64 [sum of counts]"""
    counts = counts.flatten()
    shift = starts.flatten() - (counts.cumsum(0) - counts)
    return torch.arange(int(counts.sum())) + shift.repeat_interleave(counts)


def bitmap(kept: Tensor) -> Tensor:
    """bool [..., 64] -> int64 [...], bit i for entry i"""
    weights = torch.ones(64, dtype=torch.int64) << torch.arange(64)
    return (kept.to(torch.int64) * weights).sum(-1)


def from_bitmap(bitmap: Tensor) -> Tensor:
    """Inverse of `bitmap`."""
    return ((bitmap[..., None] >> torch.arange(64)) & 1).bool()
