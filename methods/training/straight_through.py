"""Training what is stored rounded: gradients as if it were not (straight through).

Bengio et al., arXiv:1308.3432.  The parameter is a float; every forward pass sees what would be
stored for it: on the grid, under the mask and in the type of the weight that it started from.
Scales, zero points and masks stay, codes move.
"""

import torch
from torch import Tensor

from trinity.methods.formats import Dense, Factor, Sparse, Transposed, WithOutliers

Stored = Factor | Dense | WithOutliers


def like(stored: Stored, x: Tensor) -> Stored:
    """The numbers x in the form of `stored`: its type, its grid, its mask.  x: shape of `stored`"""
    if isinstance(stored, Tensor):
        return x.to(stored.dtype)
    if isinstance(stored, Transposed):
        return Transposed(stored.values.rounded(x.T))
    if isinstance(stored, WithOutliers):  # which stay as they are
        base = like(stored.base, x - stored.term())
        assert not isinstance(base, (Tensor, Transposed, WithOutliers))
        return WithOutliers(base, stored.columns, stored.values)
    if isinstance(stored, Sparse):
        return Sparse(stored.values.rounded(x), stored.mask, stored.pattern)
    return stored.rounded(x)


def decoded(stored: Stored) -> Tensor:
    """float32, in memory of its own."""
    if isinstance(stored, Tensor):
        return stored.to(torch.float32, copy=True)
    return stored.dequantize()


def straight_through(stored: Stored, x: Tensor) -> Tensor:
    """What `like` stores for x, with the gradient of x itself."""
    with torch.no_grad():
        moved = decoded(like(stored, x.detach())) - x
    return x + moved
