"""What the kernels of a target can do: one object a target, which its row names.

A linear's storage is one for every number of rows, so that decoding and prefill read the same
weights; which kernel multiplies how many rows is the target's own affair.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.weight_storage import WeightStorage
from trinity.methods.formats import CacheFormat, WeightFormat

F = TypeVar("F")


@dataclass(frozen=True)
class FusedKernel(Generic[F]):
    """A kernel of more than one linear, such as a block's attention.

    refusal: why there is none for a case, or None   code: the kernel of a case
    """

    refusal: Callable[[F], str | None]
    code: Callable[[F], KernelCode]


class TargetKernels(ABC):
    """Kernels of ours for one target."""

    objects: Path | None = None
    """The folder of code that is made already (PTX, SPIR-V), which executables name by file."""

    @property
    def flavour(self) -> str | None:
        """The set of instructions that kernels use here, where that depends on the machine."""
        return None

    def lacking(self, flavour: str | None) -> str | None:
        """What this machine lacks to run kernels of a flavour, and what to do; None if nothing."""
        return None

    def fault(self, module: bytes) -> str | None:
        """What is wrong with the code in a compiled module, which no compiler looks at; None if
        nothing is.
        """
        return None

    @abstractmethod
    def refusal(self, weight_format: WeightFormat) -> str | None:
        """Why no kernel holds a format, in a few words; None if one does."""

    @abstractmethod
    def storage(self, weight_format: WeightFormat) -> WeightStorage:
        """How a format that is not refused is stored."""

    @abstractmethod
    def linear(self, name: str, weight_format: WeightFormat, rows: int, dtype: str) -> KernelCode:
        """The private function `x: [rows, in], storage... -> y: [rows, out]`, all in float32.

        dtype: of the model, which says what numbers x holds
        """

    def cache_refusal(self, cache: CacheFormat) -> str | None:
        """Why no kernel reads keys and values that are kept so, or None."""
        return "kernels for this target read keys and values as floats only"

    @property
    def fused(self) -> Mapping[str, FusedKernel[Any]]:  # of as many types as there are operators
        """Kernels of whole operators, by the operator's name."""
        return {}
