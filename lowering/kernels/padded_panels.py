"""What our storages for GPUs have in common: panels of 32 outputs, and blocks of 32 inputs.

Every scale group is padded to whole steps, by default blocks, so that a step has one scale; outputs
and the end of a row are padded to what a kernel takes at once.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from trinity.lowering.kernels.kernel_storage import KernelStorage
from trinity.lowering.mlir.builder import MLIR_TYPES, Builder, Operand
from trinity.lowering.rows.changed_inputs import scaled_input
from trinity.methods.formats import NM

PANEL = 32  # outputs
BLOCK = 32  # inputs
AS_TWO_FOUR = (NM(2, 4), NM(1, 2))  # two of every four consecutive inputs


class PaddedPanels(KernelStorage):
    """A weight in panels and blocks; how the entries of a panel stand is each storage's own."""

    @property
    def panels(self) -> int:
        """Panels of the weight; the last may be padding in part."""
        return -(-self.format.shape[0] // PANEL)

    @property
    def step(self) -> int:
        """Inputs that have one scale, whatever the format: a block, or a part of one."""
        return BLOCK

    @property
    def span(self) -> int:
        """Steps of a scale group."""
        return -(-self.group // self.step)

    @property
    def padded_group(self) -> int:
        """Inputs of a scale group with its padding."""
        return self.span * self.step

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.groups * self.padded_group // BLOCK)

    @property
    @abstractmethod
    def width(self) -> int:
        """Inputs of a row with all padding, at its end too."""

    def _padded(self, entries: Tensor) -> Tensor:
        """[out, in] -> [panels 32, width]"""
        out, span = self.format.shape[0], self.padded_group
        full = torch.zeros(self.panels * PANEL, self.groups, span, dtype=entries.dtype)
        full[:out, :, : self.group] = entries.reshape(out, self.groups, self.group)
        return torch.nn.functional.pad(full.flatten(1), (0, self.width - self.groups * span))

    def _cut(self, padded: Tensor) -> Tensor:
        """Inverse of `_padded`."""
        span = self.padded_group
        full = padded[: self.format.shape[0], : self.groups * span]
        grouped = full.reshape(-1, self.groups, span)[:, :, : self.group]
        return grouped.reshape(self.format.shape).contiguous()


def padded_input(build: Builder, panels: PaddedPanels, rows: int, value: str, prefix: str) -> str:
    """An input of a weight, float32 [rows, in], scaled if it is to be, in padded groups.

    prefix: of the names of the weight's tensors   ->  [rows, blocks * 32]
    """
    if scale := panels.shapes().get("input_scale"):
        kind = MLIR_TYPES[scale[1]]
        stored = Operand("s", f"%arg_{prefix}input_scale", ("k",), scale[0], kind)
        value = scaled_input(build, rows, value, stored)
    groups, group, span = panels.groups, panels.group, panels.padded_group
    if group != span:
        value = build.expand(value, (rows, groups * group), [[rows], [groups, group]], "f32")
        value = build.pad_end(value, (rows, groups, group), 2, span, "f32")
        value = build.collapse(value, [[rows], [groups, span]], "f32")
    return build.pad_end(value, (rows, groups * span), 1, panels.blocks * BLOCK, "f32")


def two_of_four(kept: Tensor) -> Tensor:
    """A mask that keeps all that `kept` does and, where that is less than two of every four, as at
    the ends of padded groups, places behind.

    kept: bool [rows, inputs], two of every four at most  ->  exactly two of every four
    """
    words = kept.view(len(kept), -1, 4)
    rank = words.to(torch.uint8) * 4 + torch.arange(4, dtype=torch.uint8)
    return torch.zeros_like(words).scatter_(2, rank.topk(2).indices, True).view(kept.shape)
