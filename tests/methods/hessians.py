"""Inputs of layers, from benign to degenerate, and their statistics."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trinity.methods.contract import LayerStats


def inputs(tokens: int, d_in: int) -> Tensor:
    """Correlated inputs whose channels differ in size.  -> [tokens, in]"""
    mixed = torch.randn(tokens, d_in) @ (torch.eye(d_in) + 0.4 * torch.randn(d_in, d_in))
    return mixed * torch.logspace(-0.5, 0.5, d_in)


def stats_of(X: Tensor) -> LayerStats:
    """The Hessian of some inputs.  X: [tokens, in]"""
    H = (2 / len(X) * X.double().T @ X.double()).float()
    # Summed in float64 and symmetric to the last bit: which triangle is read does not matter.
    return LayerStats(tokens=len(X), H=(H + H.T) / 2)


def exact(tensor: Tensor) -> NDArray[np.float64]:
    """For an oracle."""
    return tensor.double().numpy()


def error(W: Tensor, found: Tensor, stats: LayerStats) -> float:
    """tr(D H D^T), D = found - W, in float64."""
    assert stats.H is not None
    D, H = (found - W).double(), stats.H.double()
    return float(((D @ H) * D).sum())
