"""Low-rank adapters beside a compressed weight: `W + B A`."""

from dataclasses import dataclass

from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats.dense import Dense, check_float_matrix
from trinity.methods.formats.quantized import Quantized
from trinity.methods.formats.sparse import Sparse


@dataclass(frozen=True)
class AdapterFormat:
    """What an adapter is, without its numbers."""

    rank: int
    dtype: str


@dataclass(frozen=True, eq=False)
class Adapted:
    """A weight and its adapter, `base + B A`.

    B: [out, rank]  A: [rank, in], both of one float type.  Named as in PEFT: A meets the input
        first.
    """

    base: Dense | Quantized | Sparse
    B: Tensor
    A: Tensor

    def __post_init__(self) -> None:
        """Refuse factors that do not fit the base or each other."""
        check_float_matrix(self.B, "adapter B")
        check_float_matrix(self.A, "adapter A")
        out, d_in = self.base.shape
        if self.B.shape[0] != out or self.A.shape[1] != d_in or self.B.shape[1] != self.A.shape[0]:
            msg = (
                f"adapter: B {list(self.B.shape)} and A {list(self.A.shape)} do not make a "
                f"[{out}, {d_in}] product."
            )
            raise ConfigError(msg)
        if self.A.dtype != self.B.dtype:
            msg = f"adapter: B is {self.B.dtype} and A is {self.A.dtype}; both must have one type."
            raise ConfigError(msg)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.base.shape

    @property
    def adapter_format(self) -> AdapterFormat:
        """The adapter without its numbers."""
        return AdapterFormat(self.A.shape[0], str(self.A.dtype).removeprefix("torch."))

    def dequantize(self) -> Tensor:
        """The weight it stands for.  -> [out, in], float32."""
        return self.base.dequantize() + self.B.float() @ self.A.float()
