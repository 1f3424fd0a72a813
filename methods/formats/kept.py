"""What a mask keeps of a matrix, in memory of about its own size."""

import torch
from torch import Tensor

_AT_ONCE = 1 << 18  # entries


def kept_of(values: Tensor, mask: Tensor) -> Tensor:
    """Entries where the mask is true, row after row; as `values[mask]`, a few rows at a time.

    At once, torch writes down both coordinates of every one first: 16 bytes for a code of one.
    values, mask: [out, in], or of more dimensions  ->  [kept]
    """
    rows = max(1, _AT_ONCE // max(1, mask[:1].numel()))
    parts = zip(torch.split(values, rows), torch.split(mask, rows), strict=True)
    return torch.cat([some[kept] for some, kept in parts])
