"""Entries that any mask keeps, one behind another, and where those of every lane begin.

A lane's entries of a unit stand in the order of its inputs, lanes in theirs, then units, then
panels: no bit lies between two entries.
"""

from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, WeightFormat

SLACK = 64  # an unstructured mask may keep a 64th more than its sparsity says, and one a row


@dataclass(frozen=True)
class Places:
    """Where kept entries begin.

    starts: int32 [panels, units], entries before a unit's   offsets: int16 [panels, units, 32],
    entries of the unit before a lane's
    """

    starts: Tensor
    offsets: Tensor


def room(weight_format: WeightFormat) -> int:
    """Entries that a mask may keep: a module depends on the pattern, not on one weight's mask."""
    pattern = weight_format.pattern
    assert pattern is not None
    kept = ceil(prod(weight_format.shape) * (1 - pattern.sparsity))
    return kept if isinstance(pattern, NM) else kept + kept // SLACK + weight_format.shape[0]


def places_of(kept: Tensor) -> Places:
    """kept: bool [panels, units, 32, inputs]"""
    counts = kept.sum(3)
    units = counts.sum(2)
    ends = units.flatten().cumsum(0).view(units.shape)
    offsets = counts.cumsum(2) - counts
    return Places((ends - units).to(torch.int32), offsets.to(torch.int16))


def in_order(entries: Tensor, kept: Tensor, weight_format: WeightFormat) -> Tensor:
    """The stream's entries, zeros behind them; ConfigError if the mask keeps more than there is
    room for.  entries, kept: [panels, units, 32, inputs]
    """
    stream, size = entries[kept], room(weight_format)
    if len(stream) > size:
        msg = (
            f"{weight_format.label}: the mask keeps {len(stream)} of {prod(weight_format.shape)} "
            f"weights, and a module has room for what its pattern says. Declare the sparsity that "
            f"the mask has."
        )
        raise ConfigError(msg)
    return torch.nn.functional.pad(stream, (0, size - len(stream)))


def at_inputs(stream: Tensor, kept: Tensor) -> Tensor:
    """Inverse of `in_order`, zero where nothing is kept."""
    full = torch.zeros(kept.shape, dtype=stream.dtype)
    full[kept] = stream[: int(kept.sum())]
    return full
