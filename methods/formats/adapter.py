"""Low-rank adapters beside a compressed weight: `W + B A`."""

from dataclasses import dataclass

from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats.dense import Floats, check_float_matrix
from trinity.methods.formats.outliers import WithOutliers
from trinity.methods.formats.quantized import Grid
from trinity.methods.formats.sparse import Pattern, Sparse
from trinity.methods.formats.values import Values, ValuesFormat


@dataclass(frozen=True, eq=False)
class Transposed:
    """A factor kept as its transpose, so that scale groups run down its columns.

    values: [columns, rows]
    """

    values: Values

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the factor."""
        columns, rows = self.values.shape
        return (rows, columns)

    def dequantize(self) -> Tensor:
        """The factor it stands for.  -> [rows, columns], float32."""
        return self.values.dequantize().T.contiguous()


Factor = Tensor | Values | Sparse | Transposed
"""A tensor is plain floats; the others are stored packed."""


@dataclass(frozen=True)
class FactorFormat:
    """What a packed factor is, without its numbers.

    transposed: it is kept as its transpose
    """

    values: ValuesFormat
    pattern: Pattern | None = None
    transposed: bool = False

    @property
    def dtype(self) -> str | None:
        """Of float values; None where they are something else."""
        return self.values.dtype if isinstance(self.values, Floats) else None

    @property
    def grid(self) -> Grid | None:
        """Of values on a uniform grid; None where they are something else."""
        return self.values if isinstance(self.values, Grid) else None


@dataclass(frozen=True)
class AdapterFormat:
    """What an adapter is, without its numbers.

    dtype: of the factors that are plain floats, None if neither is
    B, A: what a factor is that is not plain floats
    """

    rank: int
    dtype: str | None
    B: FactorFormat | None = None
    A: FactorFormat | None = None

    def __post_init__(self) -> None:
        """Refuse a description that leaves a factor open, or says twice what it is."""
        if (self.dtype is None) != (self.B is not None and self.A is not None):
            msg = f"adapter format: type {self.dtype} does not go with B {self.B} and A {self.A}."
            raise ConfigError(msg)


@dataclass(frozen=True, eq=False)
class Adapted:
    """A weight and its adapter, `base + B A`.

    B: [out, rank]  A: [rank, in].  Named as in PEFT: A meets the input first.  Plain floats are of
        one type in both.
    """

    base: Values | Sparse | WithOutliers
    B: Factor
    A: Factor

    def __post_init__(self) -> None:
        """Refuse factors that do not fit the base or each other."""
        for name, factor in (("B", self.B), ("A", self.A)):
            if isinstance(factor, Tensor):
                check_float_matrix(factor, f"adapter {name}")
        out, d_in = self.base.shape
        B, A = tuple(self.B.shape), tuple(self.A.shape)
        if B[0] != out or A[1] != d_in or B[1] != A[0]:
            msg = f"adapter: B {list(B)} and A {list(A)} do not make a [{out}, {d_in}] product."
            raise ConfigError(msg)
        types = [factor.dtype for factor in (self.B, self.A) if isinstance(factor, Tensor)]
        if len(set(types)) > 1:
            msg = f"adapter: B is {types[0]} and A is {types[1]}; both must have one type."
            raise ConfigError(msg)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.base.shape

    @property
    def rank(self) -> int:
        """Columns of B, rows of A."""
        return int(self.A.shape[0])

    @property
    def adapter_format(self) -> AdapterFormat:
        """The adapter without its numbers."""
        plain = [factor for factor in (self.B, self.A) if isinstance(factor, Tensor)]
        dtype = _name(plain[0]) if plain else None
        return AdapterFormat(self.rank, dtype, _format_of(self.B), _format_of(self.A))

    def factors(self) -> tuple[Tensor, Tensor]:
        """What the factors stand for.  -> B: [out, rank], A: [rank, in], float32"""
        return _decoded(self.B), _decoded(self.A)

    def product(self) -> Tensor:
        """B A.  -> [out, in], float32"""
        B, A = self.factors()
        return B @ A

    def dequantize(self) -> Tensor:
        """The weight it stands for.  -> [out, in], float32."""
        return self.base.dequantize() + self.product()


def _decoded(factor: Factor) -> Tensor:
    return factor.float() if isinstance(factor, Tensor) else factor.dequantize()


def _name(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")


def _format_of(factor: Factor) -> FactorFormat | None:
    """None for plain floats, which the adapter's own type describes."""
    if isinstance(factor, Tensor):
        return None
    if isinstance(factor, Transposed):
        return FactorFormat(factor.values.values_format, transposed=True)
    if isinstance(factor, Sparse):
        return FactorFormat(factor.values.values_format, factor.pattern)
    return FactorFormat(factor.values_format)
