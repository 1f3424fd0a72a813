"""What the values of a weight bring, whatever they are: the joint between a weight and its storage.

A weight's pattern and adapter ask its values no more than this. A kind of values is two classes in
one file: the numbers (`Dense`, `Quantized`) and what they are without their numbers (`Floats`,
`Grid`). `methods/formats/kinds.py` names the kinds.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor


class Values(Protocol):
    """The numbers of a kind, [out, in]; checked when they are made."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    def values_format(self) -> "ValuesFormat":
        """What they are without their numbers."""

    def dequantize(self) -> Tensor:
        """What they stand for, in memory of its own.  -> [out, in], float32."""

    def rounded(self, W: Tensor) -> Self:
        """The nearest to W that such values can be: of their type, on their grid with its scales.

        W: [out, in], any float type
        """

    def cleared(self, mask: Tensor) -> Self:
        """One fixed number where the mask is False, so that equal weights have equal bytes.

        ConfigError where entries have no value of their own that could be removed.
        """

    def stored(self) -> dict[str, Tensor]:
        """The tensors that store all of them, contiguous, of types that files hold."""

    def stored_kept(self, mask: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The tensors that store the kept ones.  shape: of them, [out, kept] or [kept]"""


class ValuesFormat(Protocol):
    """What values of a kind are without their numbers: frozen and hashable.

    kind: the name of the kind, the key of its JSON
    """

    kind: ClassVar[str]

    @property
    def numbers(self) -> type[Values]:
        """The type of the numbers that such values hold."""

    def words(self, d_in: int) -> list[str]:
        """A reader's words, for the label of a weight with `d_in` inputs."""

    def to_json(self) -> Any:
        """Plain data, which stands under `kind` in the JSON of a weight's or factor's format."""

    @staticmethod
    def from_json(data: Any) -> "ValuesFormat":
        """Read what `to_json` wrote; ConfigError, KeyError, TypeError or ValueError if it is not
        that.
        """

    def restored(self, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> Values:
        """The values that `stored` gave; KeyError names a tensor that is missing."""

    def restored_kept(
        self, mask: Tensor, kept: tuple[int, ...], tensors: Mapping[str, Tensor]
    ) -> Values:
        """The values that `stored_kept` gave, what is not kept cleared.  kept: their shape"""
