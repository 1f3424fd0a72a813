"""Steps that turn the residual stream of a whole model, without changing what it computes.

The hidden states that pass between blocks are multiplied by an orthogonal matrix, x Q for x.  It is
folded into the weights: the scales of norms into the linears that read them, Q into embedding,
head, and what reads or writes the stream.  A norm that divides by the root mean square commutes
with Q.  In exact arithmetic the model gives what it gave.
"""

from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from trinity.methods.contract import MethodConfig

ORTHOGONAL = 1e-5  # how far Q^T Q may be from the identity, in float32
C = TypeVar("C", bound=MethodConfig, contravariant=True)


@runtime_checkable
class RotationMethod(Protocol[C]):
    """Turns the residual stream of a model, before anything else is done to it."""

    name: str
    paper: str
    config: type[MethodConfig]

    def problem(self, width: int, config: C) -> str | None:
        """Why there is no rotation of so many channels with `config`, or None."""
        ...

    def rotation(self, width: int, config: C) -> Tensor:
        """Q: [width, width], float, orthogonal; depends on nothing else."""
        ...
