"""The kept entries of a masked weight in panels, one behind another: packed, and taken apart.

`panels.py` says how many there may be and in which order they stand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from trinity.lowering.kernels.cpu.bit_planes import bitmap, from_bitmap, runs
from trinity.methods.errors import ConfigError
from trinity.methods.formats import WeightFormat

OVERREAD = 64  # entries behind a stream: a vector is loaded whole, however few of it are wanted


@dataclass(frozen=True)
class KeptEntries:
    """A stream of entries.

    format: of the weight   stretches: parts of a row whose entries are found by themselves
    per_element: entries of an element, 2 where codes of 4 bits share a byte
    room: elements that a mask of the pattern may need
    """

    format: WeightFormat
    stretches: int
    per_element: int
    room: int

    def pack(self, entries: Tensor, kept: Tensor) -> dict[str, Tensor]:
        """The stream, where its stretches start, and which entries it holds.

        entries, kept: [panels, words, vectors, 64]
        """
        counts, starts, used = self._places(kept)
        if used > self.room:
            msg = (
                f"{self.format.label}: the mask keeps {int(counts.sum())} of "
                f"{prod(self.format.shape)} weights, and a module has room for what its pattern "
                f"says. Declare the sparsity that the mask has."
            )
            raise ConfigError(msg)
        per = self.per_element
        flat = torch.zeros((self.room + OVERREAD) * per, dtype=entries.dtype)
        flat[runs(starts * per, counts)] = self._in_stretches(entries)[self._in_stretches(kept)]
        if per == 2:
            flat = flat[0::2] | flat[1::2] << 4
        return {
            "panel_stream": flat[None],
            "panel_starts": starts[..., 0].to(torch.int32, memory_format=torch.contiguous_format),
            "panel_bitmap": bitmap(kept),
        }

    def unpack(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Inverse of `pack`, entries that are not kept as zeros."""
        kept = from_bitmap(tensors["panel_bitmap"])
        counts, starts, _ = self._places(kept)
        flat, per = tensors["panel_stream"][0], self.per_element
        if per == 2:
            flat = torch.stack([flat & 15, flat >> 4], dim=1).flatten()
        here = self._in_stretches(kept)
        found = torch.zeros(here.shape, dtype=flat.dtype)
        found[here] = flat[runs(starts * per, counts)]
        return found.transpose(2, 3).flatten(1, 2), kept

    def _places(self, kept: Tensor) -> tuple[Tensor, Tensor, int]:
        """How many entries word vectors keep, where theirs begin, and the elements of the stream.

        The first two are [panels, stretches, vectors, words of a stretch].
        """
        counts = self._in_stretches(kept).sum(-1)
        sizes = -(-counts // self.per_element)
        ends = sizes.flatten().cumsum(0).view(sizes.shape)
        return counts, ends - sizes, int(sizes.sum())

    def _in_stretches(self, words: Tensor) -> Tensor:
        """[panels, words, vectors, 64] -> [panels, stretches, vectors, words of a stretch, 64]"""
        split = words.view(words.shape[0], self.stretches, -1, *words.shape[2:])
        return split.transpose(2, 3)
