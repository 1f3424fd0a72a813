"""What a compressed weight is, without its numbers: the key that storage and lowering share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats.adapter import Adapted, AdapterFormat
from trinity.methods.formats.dense import Dense
from trinity.methods.formats.quantized import Grid, Quantized
from trinity.methods.formats.sparse import Pattern, Sparse, parse_pattern

CompressedWeight = Dense | Quantized | Sparse | Adapted


@dataclass(frozen=True)
class WeightFormat:
    """Shape and kind of a compressed weight; equal formats have equally shaped storage.

    (The one exception: how many entries an unstructured mask keeps is in the mask.)
    shape: (out, in)   dtype: of float values, None where quantized
    """

    shape: tuple[int, int]
    dtype: str | None = None
    grid: Grid | None = None
    pattern: Pattern | None = None
    adapter: AdapterFormat | None = None

    @property
    def label(self) -> str:
        """A reader's words: '2:4 int4 group 64 + rank 57'.  The shape is left out."""
        words = [str(self.pattern)] if self.pattern else []
        if self.grid is None:
            words.append(str(self.dtype))
        else:
            words.append(f"int{self.grid.bits}")
            words.append(granularity(self.grid, self.shape[1]))
            if self.grid.indexed:
                words.append("by index")
            if not self.grid.symmetric:
                words.append("asymmetric")
        if self.adapter:
            words.append(f"+ rank {self.adapter.rank}")
        return " ".join(words)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `config.json`; `from_json` reads it back."""
        data: dict[str, Any] = {"shape": list(self.shape), "label": self.label}
        if self.dtype:
            data["dtype"] = self.dtype
        if self.grid:
            data["grid"] = {
                "bits": self.grid.bits,
                "symmetric": self.grid.symmetric,
                "scale_shape": list(self.grid.scale_shape),
                "scale_dtype": self.grid.scale_dtype,
            }
            if self.grid.indexed:
                data["grid"]["indexed"] = True
        if self.pattern:
            data["pattern"] = str(self.pattern)
        if self.adapter:
            data["adapter"] = {"rank": self.adapter.rank, "dtype": self.adapter.dtype}
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "WeightFormat":
        """Read what `to_json` wrote; RecordError if it is not that."""
        try:
            out, d_in = data["shape"]
            grid = adapter = None
            if "grid" in data:
                rows, groups = data["grid"]["scale_shape"]
                grid = Grid(
                    data["grid"]["bits"],
                    data["grid"]["symmetric"],
                    (rows, groups),
                    data["grid"]["scale_dtype"],
                    data["grid"].get("indexed", False),
                )
            if "adapter" in data:
                adapter = AdapterFormat(data["adapter"]["rank"], data["adapter"]["dtype"])
            pattern = parse_pattern(data["pattern"]) if "pattern" in data else None
            return WeightFormat((out, d_in), data.get("dtype"), grid, pattern, adapter)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            msg = (
                f"weight format {data}: cannot be read ({error!r}). "
                f"Was it written by a newer trinity?"
            )
            raise RecordError(msg) from error


def granularity(grid: Grid, d_in: int) -> str:
    """'tensor', 'channel' or 'group N': what shares one scale."""
    if grid.scale_shape == (1, 1):
        return "tensor"
    size = -(-d_in // grid.scale_shape[1])
    return "channel" if grid.scale_shape[1] == 1 else f"group {size}"


def format_of(weight: CompressedWeight) -> WeightFormat:
    """The format of a weight."""
    adapter = pattern = None
    base = weight
    if isinstance(base, Adapted):
        adapter, base = base.adapter_format, base.base
    if isinstance(base, Sparse):
        pattern, base = base.pattern, base.values
    if isinstance(base, Quantized):
        return WeightFormat(weight.shape, None, base.grid, pattern, adapter)
    dtype = str(base.values.dtype).removeprefix("torch.")
    return WeightFormat(weight.shape, dtype, None, pattern, adapter)


def sparsity_of(weight: CompressedWeight) -> float:
    """Fraction of the base weight (the adapter apart) that is zero and not stored."""
    base = weight.base if isinstance(weight, Adapted) else weight
    return base.sparsity if isinstance(base, Sparse) else 0.0
