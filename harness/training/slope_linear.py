"""SLoPe's linear as a module, and a model whose blocks have them."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from trinity.harness.models import families
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.training.sharding import full, local, rows
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, parse_pattern
from trinity.methods.training.slope import (
    adapted,
    double_mask,
    double_pruned,
    magnitude_mask,
    new_adapter,
    random_mask,
)


class SlopeLinear(nn.Module):
    """A linear trained sparse.  Its state dict is that of SLoPe's accuracy code.

    weight: [out, in], zero outside the mask   lora_left: [in, r], lora_right: [r, out], once added
    """

    row_mask: Tensor
    both_masks: Tensor
    lora_left: nn.Parameter | None
    lora_right: nn.Parameter | None

    def __init__(self, linear: nn.Linear, mask: Tensor, pattern: NM, *, exact: bool) -> None:
        """mask: bool [out, in], static; exact: the input gradient sees the whole weight."""
        super().__init__()
        self.pattern, self.exact = pattern, exact
        self.weight = nn.Parameter(linear.weight.detach() * mask)
        self.bias = linear.bias
        self.register_buffer("row_mask", mask, persistent=False)
        self.register_buffer("both_masks", mask, persistent=False)
        self.register_parameter("lora_left", None)
        self.register_parameter("lora_right", None)
        self.has_adapter = False
        self.prune_again()

    def prune_again(self) -> None:
        """Choose the second mask of the weight as it is now."""
        self.both_masks = self.row_mask
        if not self.exact:
            self.both_masks = double_mask(full(self.weight), self.row_mask, self.pattern)

    def reserve_adapter(self, rank: int) -> None:
        """Parameters for an adapter, frozen and not used before `add_adapter`."""
        out, d_in = self.weight.shape
        left, right = self.weight.new_zeros(d_in, rank), self.weight.new_zeros(rank, out)
        self.lora_left = nn.Parameter(left, requires_grad=False)
        self.lora_right = nn.Parameter(right, requires_grad=False)

    def add_adapter(self, rank: int, generator: torch.Generator) -> list[nn.Parameter]:
        """Lazy adapters that change nothing yet; their parameters, for the optimiser.

        generator: of the CPU, so that a seed gives the same numbers on every device
        """
        if self.lora_left is None:
            self.reserve_adapter(rank)
        out, d_in = self.weight.shape
        added = [p for p in (self.lora_left, self.lora_right) if p is not None]
        for parameter, start in zip(added, new_adapter((out, d_in), rank, generator), strict=True):
            with torch.no_grad():
                local(parameter).copy_(rows(start, parameter))
            parameter.requires_grad_(True)
        self.has_adapter = True
        return added

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in]  ->  [..., out]"""
        y = double_pruned(x, self.weight, self.row_mask, self.both_masks)
        if self.bias is not None:
            y = y + self.bias
        if self.has_adapter and self.lora_left is not None and self.lora_right is not None:
            y = adapted(x, y, self.lora_left, self.lora_right)
        return y


def make_sparse(
    model: nn.Module, spec: TrainingSpec, generator: torch.Generator
) -> dict[str, SlopeLinear]:
    """Replace the linears of the blocks, all but the first ones after the input (the paper) and
    those that `spec.dense` names.  ConfigError names a layer that cannot be trained sparse.
    """
    pattern = parse_pattern(str(spec.pattern))
    if not isinstance(pattern, NM):
        msg = f"training.pattern {pattern}: SLoPe trains N:M weights, for example '2:4'."
        raise ConfigError(msg)
    layers = {}
    for name in _sparse_names(model, spec.dense):
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            kind = type(linear).__name__
            msg = f"training: {name} is a {kind}; only nn.Linear is trained sparse."
            raise ConfigError(msg)
        try:
            layers[name] = _sparse(linear, pattern, spec, generator)
        except ConfigError as error:
            msg = f"training: {name}: {error} `dense` takes names of layers to leave dense."
            raise ConfigError(msg) from error
        model.set_submodule(name, layers[name])
    if not layers:
        msg = f"training: no linear is left for {pattern}: `dense` names all of them."
        raise ConfigError(msg)
    return layers


def _sparse(
    linear: nn.Linear, pattern: NM, spec: TrainingSpec, generator: torch.Generator
) -> SlopeLinear:
    out, d_in = linear.weight.shape
    if spec.mask == "random":
        mask = random_mask((out, d_in), pattern, generator).to(linear.weight.device)
    else:
        mask = magnitude_mask(linear.weight, pattern)
    return SlopeLinear(linear, mask, pattern, exact=spec.backward == "exact")


def _sparse_names(model: Any, dense: tuple[str, ...]) -> Iterator[str]:
    """model: a Hugging Face model of a known family (transformers has no common type for it)."""
    family = families.get(model.config.model_type)
    for index in range(len(model.get_submodule(family.blocks))):
        for number, group in enumerate(family.groups):
            for name in group if (index, number) != (0, 0) else ():
                whole = f"{family.blocks}.{index}.{name}"
                if not any(fnmatchcase(whole, glob) for glob in dense):
                    yield whole
