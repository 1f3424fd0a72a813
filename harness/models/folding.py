"""A model's tensors, changed as they are read: scales that were moved from one layer into another.

What is stored are the scales.  Whoever reads a block of the model gets the changed tensors, so the
changed model stands for the original one everywhere: in the walk, in tuning, in a checkpoint.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trinity.harness.models.families import Family
from trinity.methods.transforms import Fold


@dataclass(frozen=True, eq=False)
class Factor:
    """(tensor + offset) * values - offset, along one axis.

    values: float32   offset: of norms that multiply by 1 + weight
    """

    values: Tensor
    axis: int
    offset: float = 0.0

    def __call__(self, tensor: Tensor) -> Tensor:
        """In float32; the same type comes back."""
        shape = [1] * tensor.ndim
        shape[self.axis] = -1
        values = self.values.to(tensor.device).view(shape)
        changed = (tensor.float() + self.offset) * values - self.offset
        return changed.to(tensor.dtype)


def folds(model: nn.Module, family: Family, index: int) -> tuple[Fold, ...]:
    """What may be scaled in a block of this very model, in order of execution.

    Left out: a norm without weights, and a linear with other outputs than the inputs that are to
    be scaled (value heads that several query heads share).
    """
    prefix, modules = f"{family.blocks}.{index}.", dict(model.named_modules())
    found = []
    for group in family.groups:
        for spec in family.folds:
            if spec.reads not in group or (prefix + spec.into) not in modules:
                continue
            into = modules[prefix + spec.into]
            weight = getattr(into, "weight", None)
            if weight is None or len(_outputs(into)) != _inputs(modules[prefix + spec.reads]):
                continue
            names = tuple(prefix + name for name in group)
            found.append(Fold(names, prefix + spec.into, "norm" if weight.ndim == 1 else "linear"))
    return tuple(found)


def _outputs(module: nn.Module) -> Tensor:
    """Something with one row for each output.  -> [out, ...] on any device"""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def _inputs(linear: nn.Module) -> int:
    return _outputs(linear).shape[1]


def factors(
    model: nn.Module, family: Family, scales: Mapping[Fold, Tensor]
) -> Iterator[tuple[str, Factor]]:
    """(name of a tensor, what it is multiplied by), of all that some scales change.

    scales: [in] each
    """
    offsets = {spec.into: spec.offset for spec in family.folds}
    for fold, scale in scales.items():
        values = scale.detach().to("cpu", torch.float32)
        for name in fold.linears:
            inputs = 0 if isinstance(model.get_submodule(name), Conv1D) else 1
            yield f"{name}.weight", Factor(values, inputs)
        into = model.get_submodule(fold.into)
        outputs = 1 if isinstance(into, Conv1D) else 0
        offset = next(of for end, of in offsets.items() if fold.into.endswith(f".{end}"))
        yield f"{fold.into}.weight", Factor(1 / values, outputs, offset)
        if getattr(into, "bias", None) is not None:
            yield f"{fold.into}.bias", Factor(1 / values, 0)
