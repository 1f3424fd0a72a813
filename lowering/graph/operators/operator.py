"""What lowering knows of an opaque operator, at every stage."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.mlir.calls import PackedCall, Signature, Site


class Operator(ABC):
    """An opaque operator with the formats of one plan: its operands, its calls, its kernel.

    The file of an operator defines it in torch, the modules that call it, and this.
    """

    signature: ClassVar[Signature]

    @abstractmethod
    def stand_ins(self, model: nn.Module, tokens: int) -> Mapping[str, nn.Module]:
        """Modules that call it in a step of so many tokens, by the names of those they replace."""

    @abstractmethod
    def opaque(self, tokens: int) -> list[str]:
        """What an exported step of so many tokens depends on: whose calls are in it, sorted, with
        shapes where they are not the model's own.
        """

    @abstractmethod
    def annotated(self, site: Site) -> PackedCall:
        """Its call at stage annotated: the types say what each weight is."""

    @abstractmethod
    def stored(self, site: Site) -> PackedCall:
        """Its call at stage storage, on the tensors that are stored."""

    @abstractmethod
    def code(self, site: Site) -> KernelCode | None:
        """The kernel that computes it; None where the call has a body of the compiler's."""
