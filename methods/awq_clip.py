"""AWQ's second half: clip each group where its outputs gain, and round (Lin et al., 2306.00978).

The largest magnitude of a group is shrunk in steps of a twentieth, down to just above a half;
weights beyond it are clipped, and the group is rounded.  Kept is the one with the least squared
error of what the group adds to the output,

    sum over tokens of ((w - Q(clip(w))) . x)^2 = d H_gg d^T,

with H_gg the block of H at the group's inputs.  Query and key are rounded without clipping: their
outputs are multiplied with each other.

Differs from the published code: the error is that of all tokens, by H, where the code takes 512 of
them; the grid is `rtn`'s.
"""

from collections.abc import Mapping

import torch
from pydantic import PositiveInt
from torch import Tensor

from trinity.methods import rtn
from trinity.methods.contract import BlockTask, Reported, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight
from trinity.methods.solve import hessian
from trinity.methods.tensors import requantized, unquantized

SHRINK_BY = 20  # parts of the largest magnitude


class AwqClipConfig(rtn.RtnConfig):
    """Defaults are the paper's: 4 bits, asymmetric, groups of 128.

    steps: how many limits are tried, each a twentieth of the largest magnitude lower
    unclipped: linears with one of these in the last part of their name are rounded as they are
    """

    symmetric: bool = False
    steps: PositiveInt = 10
    unclipped: tuple[str, ...] = ("q_", "k_", "query", "key", "Wqkv")


def clipped(W: Tensor, H: Tensor, config: AwqClipConfig) -> Tensor:
    """W: [out, in]  H: [in, in]  ->  W between the best limits of each row and group"""
    out, d_in = W.shape
    groups = rtn.scale_shape((out, d_in), config)[1]
    size = d_in // groups
    parts = W.reshape(out, groups, size)
    largest = parts.abs().amax(-1, keepdim=True)
    blocks = torch.stack([H[g : g + size, g : g + size] for g in range(0, d_in, size)])
    best, least = parts, torch.full_like(largest, torch.inf)
    for step in range(min(config.steps, SHRINK_BY)):
        limit = largest * (1 - step / SHRINK_BY)
        tried = torch.minimum(torch.maximum(parts, -limit), limit)
        found = rtn.compress(tried.reshape(out, d_in), config).dequantize()
        D = (found - W).reshape(out, groups, size)
        error = (torch.einsum("ogi,gij->ogj", D, blocks) * D).sum(-1, keepdim=True)
        best = torch.where(error < least, tried, best)
        least = torch.minimum(error, least)
    return best.reshape(out, d_in)


def is_clipped(name: str, config: AwqClipConfig) -> bool:
    """Whether a linear is: by the last part of its name."""
    return not any(part in name.rpartition(".")[2] for part in config.unclipped)


class _AwqClip:
    name = "awq-clip"
    paper = "arXiv:2306.00978"
    config = AwqClipConfig
    needs = Statistic.HESSIAN

    def problem(self, shape: tuple[int, int], config: AwqClipConfig) -> str | None:
        return rtn.problem(shape, config)

    def compress_block(
        self, task: BlockTask, config: AwqClipConfig
    ) -> Mapping[str, CompressedWeight | Reported]:
        made = {}
        for name, current in task.current.items():
            if found := self.problem(current.shape, config):
                raise ConfigError(f"awq-clip: {found}.")
            W = unquantized(current, "awq-clip").dequantize()
            if config.group_size != "tensor" and is_clipped(name, config):
                W = clipped(W, hessian(task.stats[name], "awq-clip"), config)
            made[name] = requantized(current, rtn.compress(W, config), "awq-clip")
        return made


AWQ_CLIP = _AwqClip()
