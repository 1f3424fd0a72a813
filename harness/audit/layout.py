"""What an audit knows of a checkpoint's matrices, whichever program stored them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Matrix:
    """One matrix of a model, or a stack of them (experts in one tensor), as its file stores it.

    name: of the module   form: 'int4 group 128', 'bf16'   shape: (out, in), a stack has more
    value_bytes: codes or floats   beside_bytes: scales, zero points, indexes, tables
    quantized: whether it is codes   faults: of its tensors; with any, it is not decoded
    """

    name: str
    form: str
    shape: tuple[int, ...]
    value_bytes: int
    beside_bytes: int = 0
    quantized: bool = True
    faults: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """How many numbers it stands for."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Decoded:
    """What a matrix holds.

    values: [..., out, in], any float, or None where nothing here can decode it
    codes: int [out, in], None of plain floats   scales: float, any shape, None of plain floats
    """

    values: Tensor | None
    codes: Tensor | None = None
    scales: Tensor | None = None


@dataclass(frozen=True)
class Fault:
    """Something silently wrong.  layer: a module, or what of the checkpoint it concerns"""

    layer: str
    what: str


class Layout(Protocol):
    """How one program stores a checkpoint: one file of this room each."""

    name: str

    @property
    def claim(self) -> str:
        """What its configuration says of the weights, in words: '4 bits, group 128'."""
        ...

    @property
    def total_bytes(self) -> int:
        """All tensors of its files."""
        ...

    @property
    def blocks(self) -> int | None:
        """Blocks that its configuration says it has, None where it does not."""
        ...

    def lost(self) -> Sequence[Fault]:
        """Tensors that ought to be there and are not, or belong to nothing."""
        ...

    def matrices(self) -> Sequence[Matrix]:
        """Every matrix, from names, types and shapes alone: no weight is read."""
        ...

    def decode(self, matrix: Matrix) -> Decoded:
        """Read one matrix that has no faults."""
        ...
