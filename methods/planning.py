"""Steps that look at all layers before the first is compressed, and give each its options.

A planning step stands in front of the step whose options it gives.  It measures the model as it is
before compression, block by block, and keeps a few numbers of each layer; from the numbers of all
layers together follow the options of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic

C = TypeVar("C", bound=MethodConfig, contravariant=True)


@dataclass(frozen=True)
class Measured:
    """What is known of one layer.

    shape: (out, in)   numbers: what the method measured, finite
    """

    shape: tuple[int, int]
    numbers: Mapping[str, float]


@runtime_checkable
class PlanMethod(Protocol[C]):
    """Gives the step after it other options in every layer, from what it sees of all of them."""

    name: str
    paper: str
    config: type[MethodConfig]
    needs: Statistic

    def problem(self, shape: tuple[int, int], config: C) -> str | None:
        """Why a layer [out, in] cannot be planned with `config`, or None."""
        ...

    def measure(
        self, weights: Mapping[str, Tensor], stats: Mapping[str, LayerStats], config: C
    ) -> Mapping[str, Mapping[str, float]]:
        """Numbers of every layer of one block, by layer.

        weights: of each, [out, in], float32, before compression   stats: of each one's input
        """
        ...

    def allot(
        self, blocks: Sequence[Mapping[str, Measured]], given: Mapping[str, Any], config: C
    ) -> Mapping[str, Mapping[str, Any]]:
        """Options for the step after this one, by layer; layers and options left out stay.

        blocks: the layers of every block, in order   given: that step's options, as a recipe
            writes them (plain data of any method, hence Any)
        """
        ...
