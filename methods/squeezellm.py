"""SqueezeLLM: levels of a row's own, where the loss is sensitive (Kim et al., arXiv:2306.07629).

Each row of W gets 2^bits levels that minimize

    sum_j F_ij (W_ij - level(code_ij))^2                                            (eq. 4)

F being the mean of squared gradients of the loss (diagonal Fisher): weighted k-means in one
dimension, by Lloyd's steps.  `outliers` and `sensitive` are the dense-and-sparse form: the largest
weights of a row and those of largest F W^2 leave the clustering and are stored by index.

Differs from the paper and its code:
- Both shares are of every row, at least one entry where the share is not 0; the code takes one
  threshold for a layer.  Rows with equally many are what kernels read.
- Sensitive weights are those of largest F W^2, what the loss would change by if they were zero; the
  code ranks by F alone.
- An entry that is stored by index is the difference to its code's level, not the weight: the term
  is added.
- Lloyd's steps start at quantiles of F, so that every run is the same; the code draws its starts.
- A row without gradients, or with fewer of them than levels, is clustered as if all were equal.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    CompressedWeight,
    RowCoded,
    Sparse,
    Values,
    WithOutliers,
    with_outliers,
)
from trinity.methods.options import FloatName, cast
from trinity.methods.tensors import lowest_removed, unquantized


class SqueezellmConfig(MethodConfig):
    """Defaults are the paper's.

    bits: of a code
    iterations: Lloyd's steps, at most
    outliers: share of a row's weights that are stored by index because they are the largest
    sensitive: share of a row's weights that are stored by index because the loss needs them
    dtype: in which levels and what is stored by index are stored
    """

    bits: Literal[2, 3, 4] = 4
    iterations: PositiveInt = 50
    outliers: float = Field(0.0, ge=0, lt=0.5)
    sensitive: float = Field(0.0, ge=0, lt=0.5)
    dtype: FloatName = "float16"


def weighted_levels(W: Tensor, F: Tensor, count: int, iterations: int) -> Tensor:
    """The levels of each row by Lloyd's steps, ascending.

    W, F: [out, in], float64, F not negative   -> [out, count]
    """
    x, order = W.contiguous().sort(dim=1)
    weight = F.gather(1, order)
    # Of each prefix of a sorted row, the weight and the weighted sum: a cluster is a difference.
    zero = x.new_zeros(len(x), 1)
    mass = torch.cat([zero, weight.cumsum(1)], dim=1)
    moment = torch.cat([zero, (weight * x).cumsum(1)], dim=1)
    parts = torch.linspace(0, 1, count + 1, dtype=x.dtype, device=x.device)
    edges = torch.searchsorted(mass, mass[:, -1:] * parts[1:-1]).clamp(max=x.shape[1])
    levels = x.new_zeros(len(x), count)
    for _ in range(iterations):
        ends = torch.cat([torch.zeros_like(edges[:, :1]), edges, edges[:, :1] * 0 + x.shape[1]], 1)
        own = mass.gather(1, ends).diff(dim=1)
        centre = moment.gather(1, ends).diff(dim=1) / own.clamp(min=torch.finfo(x.dtype).tiny)
        # A cluster without weight keeps its place between its neighbours.
        levels = torch.where(own > 0, centre, levels).sort(dim=1).values
        found = torch.searchsorted(x, (levels[:, 1:] + levels[:, :-1]) / 2)
        if bool((found == edges).all()):
            break
        edges = found
    return levels


def by_index(W: Tensor, F: Tensor, config: SqueezellmConfig) -> Tensor | None:
    """Which weights are stored by index.  W, F: [out, in]  ->  bool [out, in], or None for none"""
    chosen, d_in = torch.zeros_like(W, dtype=torch.bool), W.shape[1]
    for share, score in ((config.outliers, W.abs()), (config.sensitive, F * W.square())):
        if share:
            # What is chosen already does not count again.
            score = score.masked_fill(chosen, -1.0)
            chosen |= lowest_removed(score, d_in - room(share, d_in))
    return chosen if bool(chosen.any()) else None


def room(share: float, d_in: int) -> int:
    """Entries of a row."""
    return max(1, round(share * d_in))


def compress(
    current: CompressedWeight, fisher: Tensor, config: SqueezellmConfig
) -> Values | Sparse | WithOutliers:
    """Cluster every row.  fisher: [out, in]"""
    weight = unquantized(current, "squeezellm")
    if isinstance(weight, Sparse):
        msg = (
            "squeezellm: an earlier step pruned this weight, and levels of a row need not have a "
            "zero. Leave one of the two out."
        )
        raise ConfigError(msg)
    W, F = weight.dequantize().double(), fisher.double()
    chosen = by_index(W, F, config)
    few = (F > 0).sum(1, keepdim=True) < 2**config.bits
    weighing = torch.where(few, 1.0, F)
    if chosen is not None:
        weighing = weighing.masked_fill(chosen, 0)
    levels = weighted_levels(W, weighing, 2**config.bits, config.iterations)
    start = torch.zeros(W.shape, dtype=torch.uint8, device=W.device)
    coded = RowCoded(start, cast(levels.float(), config.dtype)).rounded(W)
    if chosen is None:
        return coded
    S = torch.where(chosen, W.float() - coded.dequantize(), 0.0)
    most = sum(room(share, W.shape[1]) for share in (config.outliers, config.sensitive) if share)
    return with_outliers(coded, S, most, getattr(torch, config.dtype))


class _Squeezellm:
    name = "squeezellm"
    paper = "arXiv:2306.07629"
    config = SqueezellmConfig
    needs = Statistic.FISHER

    def problem(self, shape: tuple[int, int], config: SqueezellmConfig) -> str | None:
        shares = [share for share in (config.outliers, config.sensitive) if share]
        if sum(room(share, shape[1]) for share in shares) >= shape[1] and shares:
            return f"{shape[1]} inputs are too few to store some of them by index"
        return None

    def compress(
        self, W: Tensor, current: CompressedWeight, stats: LayerStats, config: SqueezellmConfig
    ) -> CompressedWeight:
        if found := self.problem(current.shape, config):
            raise ConfigError(f"squeezellm: {found}.")
        if stats.fisher is None:
            msg = "squeezellm: needs gradients of the loss; the recipe has no calibration data."
            raise ConfigError(msg)
        return compress(current, stats.fisher, config)


SQUEEZELLM = _Squeezellm()
