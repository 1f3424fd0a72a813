"""Calls of opaque operators: how they look in torch, and as functions at the later stages."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """How an opaque operator is called.

    name: in torch, `trinity::<name>`   site: place of the operand that names whose call it is
    rows: axis of its first operand along which tokens stand   prefix: of its functions' names
    parameter: the first that a function is called with, by its name below the site's; None for an
        operator that has none, whose call is the same at every stage from annotated on
    """

    name: str
    site: int
    rows: int
    prefix: str
    parameter: str | None


@dataclass(frozen=True)
class Site:
    """Where an operator is called.  name: of the layer or block   rows: of its first operand"""

    name: str
    rows: int


@dataclass(frozen=True)
class PackedCall:
    """A function of packed weights, and the globals that it gets besides its inputs.

    body: its text; None where it is only declared   inputs, results: types
    operands: global and type
    """

    function: str
    body: str | None
    inputs: tuple[str, ...]
    results: tuple[str, ...]
    operands: tuple[tuple[str, str], ...]

    @property
    def declaration(self) -> str:
        """The function without its body."""
        types = ", ".join([*self.inputs, *(kind for _, kind in self.operands)])
        return f"func.func private @{self.function}({types}) -> ({', '.join(self.results)})"

    @property
    def text(self) -> str:
        """The function, as far as there is one."""
        return self.body or self.declaration


CallOf = Callable[[Site], PackedCall]
