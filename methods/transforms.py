"""Steps that change several layers together without changing what the model computes.

The inputs of some linears of a block are divided by a scale for each channel, where they are made
(in a norm, or in the linear before), and the columns of the linears' weights are multiplied by it.
In exact arithmetic the block gives what it gave.  What comes after, rounding above all, sees other
weights and other inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from trinity.methods.contract import LayerStats, MethodConfig, Statistic

C = TypeVar("C", bound=MethodConfig, contravariant=True)


@dataclass(frozen=True)
class Fold:
    """Linears of a block whose input channels may be scaled, and what makes their input.

    linears: their names; all of them read this input and nothing else does
    into: the norm, or the linear, whose outputs are divided by the scale
    """

    linears: tuple[str, ...]
    into: str
    kind: Literal["norm", "linear"]


@dataclass(frozen=True, eq=False)
class Scaled:
    """What the columns of a fold's linears are multiplied by.

    scale: [in], float, positive
    details: plain numbers and texts, which go into the report of each of the linears
    """

    scale: Tensor
    details: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TransformTask:
    """A transformer block before any of its weights is compressed.

    weights: of each linear, [out, in], float32   stats: of each linear's input
    folds: what may be scaled, of linears that have this step, in order of execution
    inputs: block inputs, one [seq, hidden] for each calibration sequence
    forward: (weight of each linear, one input) -> block output [seq, hidden]
    """

    weights: Mapping[str, Tensor]
    stats: Mapping[str, LayerStats]
    folds: tuple[Fold, ...]
    inputs: tuple[Tensor, ...]
    forward: Callable[[Mapping[str, Tensor], Tensor], Tensor]


@runtime_checkable
class TransformMethod(Protocol[C]):
    """Changes the layers of a block together by an exact identity, before they are compressed."""

    name: str
    paper: str
    config: type[MethodConfig]
    needs: Statistic

    def problem(self, shape: tuple[int, int], config: C) -> str | None:
        """Why a layer [out, in] cannot be transformed with `config`, or None."""
        ...

    def transform(self, task: TransformTask, config: C) -> Mapping[Fold, Scaled]:
        """Scales for some of `task.folds`; those that are left out stay as they are."""
        ...
