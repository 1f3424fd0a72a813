"""How a module stores a compressed weight: what every stage asks of that, whoever reads it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from trinity.methods.formats import CompressedWeight, WeightFormat

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
CodePath = Literal["compiled", "kernel"]
"""Whose code multiplies: the compiler's own, or a kernel of ours."""


class WeightStorage(ABC):
    """Where the entries of a weight of one format stand."""

    format: WeightFormat
    path: ClassVar[CodePath]

    @abstractmethod
    def shapes(self) -> Shapes:
        """Shape and type of every stored tensor, in the order of a linear function's arguments."""

    @abstractmethod
    def pack(self, weight: CompressedWeight) -> dict[str, Tensor]:
        """The stored tensors of a weight of this format; `unpack` inverts it exactly."""

    @abstractmethod
    def unpack(self, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """The weight that `pack` stored."""

    def bits(self) -> float:
        """Stored bits per weight, padding and everything else included."""
        stored = sum(prod(shape) * dtype.itemsize for shape, dtype in self.shapes().values())
        return 8 * stored / prod(self.format.shape)
