"""Sparse weights: a mask over values of any kind; only kept entries are stored."""

import re
from dataclasses import dataclass
from decimal import Decimal

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats import tiles
from trinity.methods.formats.tiles import Tiles
from trinity.methods.formats.values import Values


@dataclass(frozen=True)
class NM:
    """Exactly `n` kept of every `m` consecutive inputs."""

    n: int
    m: int

    def __post_init__(self) -> None:
        """Refuse patterns that keep nothing, everything, or need more than 4 index bits."""
        if not 1 <= self.n < self.m <= 16:
            msg = (
                f"pattern {self.n}:{self.m}: N:M keeps N of every M inputs "
                f"and needs 1 <= N < M <= 16."
            )
            raise ConfigError(msg)

    def __str__(self) -> str:
        """The recipe's spelling, '2:4'."""
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """Fraction that is zero."""
        return 1 - self.n / self.m


@dataclass(frozen=True)
class Unstructured:
    """Any entries, this fraction of them zero."""

    sparsity: float

    def __post_init__(self) -> None:
        """Refuse fractions outside the open unit interval."""
        if not 0 < self.sparsity < 1:
            msg = (
                f"unstructured sparsity {self.sparsity}: "
                f"expected a fraction between 0 and 1, both excluded."
            )
            raise ConfigError(msg)

    def __str__(self) -> str:
        """The recipe's spelling, '50%', with every digit: `parse_pattern` is the inverse."""
        return f"{(Decimal(repr(self.sparsity)) * 100).normalize():f}%"


Pattern = NM | Unstructured | Tiles


def parse_pattern(text: str) -> Pattern:
    """Read '2:4' (N kept of M), '50%' (unstructured, fraction zero), or what `Tiles` spells."""
    if found := re.fullmatch(r"(\d+):(\d+)", text.strip()):
        return NM(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)%", text.strip()):
        return Unstructured(float(Decimal(found[1]) / 100))
    if found_tiles := tiles.read(text):
        return found_tiles
    msg = (
        f"pattern '{text}': expected N:M such as '2:4' (N kept of every M) "
        f"or a sparsity such as '50%'."
    )
    raise ConfigError(msg)


@dataclass(frozen=True, eq=False)
class Sparse:
    """A matrix whose masked-out entries are zero and not stored.

    values: the matrix; what it holds at masked-out entries has no meaning and is set to zero
    mask: bool [out, in], True keeps
    pattern: what the mask obeys; N:M and tiles are checked exactly
    """

    values: Values
    mask: Tensor
    pattern: Pattern

    def __post_init__(self) -> None:
        """Check the mask against the pattern, and clear the entries that it removes."""
        mask, shape = self.mask, self.values.shape
        if mask.dtype != torch.bool or mask.shape != shape:
            msg = f"mask: expected bool {list(shape)}, found {mask.dtype} {list(mask.shape)}."
            raise ConfigError(msg)
        if isinstance(self.pattern, NM):
            check_nm(mask, self.pattern)
        elif isinstance(self.pattern, Tiles):
            tiles.check(mask, self.pattern)
        object.__setattr__(self, "values", self.values.cleared(mask))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.values.shape

    @property
    def sparsity(self) -> float:
        """Fraction of entries that are zero and not stored."""
        return 1 - int(self.mask.sum()) / self.mask.numel()

    def dequantize(self) -> Tensor:
        """The weight it stands for.  -> [out, in], float32."""
        return torch.where(self.mask, self.values.dequantize(), 0.0)


def check_nm(mask: Tensor, pattern: NM) -> None:
    """Raise ConfigError unless every `m` inputs keep exactly `n`.  mask: bool [out, in]."""
    out, d_in = mask.shape
    if d_in % pattern.m:
        msg = (
            f"pattern {pattern} does not divide the layer: "
            f"in = {d_in} is not a multiple of {pattern.m}."
        )
        raise ConfigError(msg)
    kept = mask.view(out, d_in // pattern.m, pattern.m).sum(-1, dtype=torch.uint8)
    if not bool((kept == pattern.n).all()):
        row, group = (int(i) for i in (kept != pattern.n).nonzero()[0])
        msg = (
            f"mask: row {row}, inputs {group * pattern.m}..{(group + 1) * pattern.m - 1} keep "
            f"{int(kept[row, group])} entries where {pattern} keeps exactly {pattern.n}."
        )
        raise ConfigError(msg)
