"""What a compressed weight is, without its numbers: the key that storage and lowering share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats import kinds
from trinity.methods.formats.adapter import Adapted, AdapterFormat, FactorFormat
from trinity.methods.formats.codebook import Codebook
from trinity.methods.formats.dense import Floats
from trinity.methods.formats.inputs import InputFormat
from trinity.methods.formats.nested_grid import NestedGrid
from trinity.methods.formats.outliers import OutlierFormat, WithOutliers
from trinity.methods.formats.quantized import Grid
from trinity.methods.formats.row_codebook import RowCodebook
from trinity.methods.formats.sparse import Pattern, Sparse, parse_pattern
from trinity.methods.formats.values import Values, ValuesFormat
from trinity.methods.formats.vector_codebook import VectorCodebook

CompressedWeight = Values | Sparse | WithOutliers | Adapted


@dataclass(frozen=True)
class WeightFormat:
    """Shape and kind of a compressed weight; equal formats have equally shaped storage.

    (The one exception: how many entries an unstructured mask keeps is in the mask.)
    shape: (out, in)   values: what the values are: all that storage, label and JSON ask of them
    inputs: what a product rounds its inputs to, where the model declares that; a property of the
        model and not of the weight, so no weight's own format has it
    outliers: entries of every row that are added to the values
    """

    shape: tuple[int, int]
    values: ValuesFormat
    pattern: Pattern | None = None
    adapter: AdapterFormat | None = None
    inputs: InputFormat | None = None
    outliers: OutlierFormat | None = None

    @property
    def dtype(self) -> str | None:
        """Of float values; None where they are something else."""
        return self.values.dtype if isinstance(self.values, Floats) else None

    @property
    def grid(self) -> Grid | None:
        """Of values on a uniform grid; None where they are something else."""
        return self.values if isinstance(self.values, Grid) else None

    @property
    def codebook(self) -> Codebook | None:
        """Of values of a table; None where they are something else."""
        return self.values if isinstance(self.values, Codebook) else None

    @property
    def coded(self) -> Grid | Codebook | None:
        """Of values that are codes under scales, whatever those mean; None of any others."""
        return self.grid or self.codebook

    @property
    def row_codebook(self) -> RowCodebook | None:
        """Of values of a row's own table; None where they are something else."""
        return self.values if isinstance(self.values, RowCodebook) else None

    @property
    def nested(self) -> NestedGrid | None:
        """Of values under scales that are codes themselves; None where they are something else."""
        return self.values if isinstance(self.values, NestedGrid) else None

    @property
    def vectors(self) -> VectorCodebook | None:
        """Of values of tables of vectors; None where they are something else."""
        return self.values if isinstance(self.values, VectorCodebook) else None

    @property
    def code_bits(self) -> int | None:
        """Of values that are codes, under scales or not; None of any others."""
        codes = self.coded or self.row_codebook or self.nested
        return codes.bits if codes else None

    @property
    def scale_groups(self) -> int:
        """Groups of a row's inputs with a scale each; 1 where there are no scales."""
        if self.nested:
            return self.nested.groups
        return self.coded.scale_shape[1] if self.coded else 1

    @property
    def label(self) -> str:
        """A reader's words: '2:4 int4 group 64 + rank 57'.  The shape is left out."""
        words = [str(self.pattern)] if self.pattern else []
        words += self.values.words(self.shape[1])
        if self.outliers:
            words.append(self.outliers.label)
        if self.adapter:
            words.append(f"+ rank {self.adapter.rank}")
            words += self._factor_words()
        if self.inputs:
            words.append(f"with inputs {self.inputs.label}")
        return " ".join(words)

    def factor(self, name: Literal["A", "B"]) -> "WeightFormat":
        """The format of an adapter's factor as it is stored: as its transpose if it is kept so."""
        if self.adapter is None:
            msg = f"format {self.label} has no adapter"
            raise AssertionError(msg)
        (out, d_in), rank = self.shape, self.adapter.rank
        rows, columns = (out, rank) if name == "B" else (rank, d_in)
        found = self.adapter.B if name == "B" else self.adapter.A
        inputs = self.inputs if name == "A" else None  # B reads what A gives
        if found is None:
            return WeightFormat((rows, columns), Floats(str(self.adapter.dtype)), inputs=inputs)
        shape = (columns, rows) if found.transposed else (rows, columns)
        return WeightFormat(shape, found.values, found.pattern, inputs=inputs)

    def _factor_words(self) -> list[str]:
        """Nothing for plain floats, else what both factors are, or each of them."""
        if self.adapter is None or (self.adapter.B is None and self.adapter.A is None):
            return []
        B, A = self.factor("B").label, self.factor("A").label
        B += " transposed" if self.adapter.B and self.adapter.B.transposed else ""
        A += " transposed" if self.adapter.A and self.adapter.A.transposed else ""
        return [A] if A == B else [f"(B {B}, A {A})"]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `config.json`; `from_json` reads it back."""
        data: dict[str, Any] = {"shape": list(self.shape), "label": self.label}
        data[self.values.kind] = self.values.to_json()
        if self.pattern:
            data["pattern"] = str(self.pattern)
        if self.outliers:
            data["outliers"] = self.outliers.to_json()
        if self.adapter:
            data["adapter"] = _adapter_json(self.adapter)
        if self.inputs:
            data["inputs"] = self.inputs.to_json()
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "WeightFormat":
        """Read what `to_json` wrote; RecordError if it is not that."""
        try:
            out, d_in = data["shape"]
            adapter = _read_adapter(data["adapter"]) if "adapter" in data else None
            pattern = parse_pattern(data["pattern"]) if "pattern" in data else None
            inputs = InputFormat.from_json(data["inputs"]) if "inputs" in data else None
            outliers = OutlierFormat.from_json(data["outliers"]) if "outliers" in data else None
            values = kinds.read(data)
            return WeightFormat((out, d_in), values, pattern, adapter, inputs, outliers)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            msg = (
                f"weight format {data}: cannot be read ({error!r}). "
                f"Was it written by a newer trinity?"
            )
            raise RecordError(msg) from error


def _adapter_json(adapter: AdapterFormat) -> dict[str, Any]:
    """A plain float adapter is its rank and type, as before factors could be packed."""
    data: dict[str, Any] = {"rank": adapter.rank}
    if adapter.dtype:
        data["dtype"] = adapter.dtype
    for name, found in (("B", adapter.B), ("A", adapter.A)):
        if found:
            data[name] = {
                found.values.kind: found.values.to_json(),
                **({"pattern": str(found.pattern)} if found.pattern else {}),
                **({"transposed": True} if found.transposed else {}),
            }
    return data


def _read_adapter(data: Mapping[str, Any]) -> AdapterFormat:
    B, A = (_read_factor(data[name]) if name in data else None for name in ("B", "A"))
    return AdapterFormat(data["rank"], data.get("dtype"), B, A)


def _read_factor(data: Mapping[str, Any]) -> FactorFormat:
    pattern = parse_pattern(data["pattern"]) if "pattern" in data else None
    return FactorFormat(kinds.read(data), pattern, data.get("transposed", False))


def format_of(weight: CompressedWeight) -> WeightFormat:
    """The format of a weight."""
    adapter = pattern = outliers = None
    base = weight
    if isinstance(base, Adapted):
        adapter, base = base.adapter_format, base.base
    if isinstance(base, WithOutliers):
        outliers, base = base.outlier_format, base.base
    if isinstance(base, Sparse):
        pattern, base = base.pattern, base.values
    return WeightFormat(weight.shape, base.values_format, pattern, adapter, outliers=outliers)


def sparsity_of(weight: CompressedWeight) -> float:
    """Fraction of the base weight (adapter and outliers apart) that is zero and not stored."""
    base = weight.base if isinstance(weight, Adapted) else weight
    base = base.base if isinstance(base, WithOutliers) else base
    return base.sparsity if isinstance(base, Sparse) else 0.0
