"""What the storages of our kernels have in common: how a weight comes apart and together again.

In which order its entries stand is each one's own.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from trinity.lowering.weight_storage import CodePath, Shapes, WeightStorage
from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    NM,
    Adapted,
    Codebook,
    Coded,
    CompressedWeight,
    Dense,
    Factor,
    Nested,
    Pattern,
    Quantized,
    RowCoded,
    Sparse,
    Tiles,
    WithOutliers,
    format_of,
)
from trinity.methods.formats.tiles import mask_of

Numbers = Quantized | Coded | RowCoded | Nested
FactorName = Literal["B", "A"]
FACTORS: tuple[FactorName, ...] = ("B", "A")


class Codes(NamedTuple):
    """What is stored of a weight of codes, as matrices again.

    codes: uint8 [out, in], as they are stored   mask: bool [out, in], None where every code is
    stored   scale, zero_point: [out, groups]   outer_scale: [1, 1]   levels: [out, 2^bits]
    nested: what a `Nested` has beside its codes, by its names
    """

    codes: Tensor
    mask: Tensor | None
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    outer_scale: Tensor | None = None
    levels: Tensor | None = None
    nested: Mapping[str, Tensor] | None = None


class KernelStorage(WeightStorage):
    """Where the entries of a weight of one format stand for a kernel of ours."""

    path: ClassVar[CodePath] = "kernel"

    @property
    def groups(self) -> int:
        """Scale groups of a row."""
        return self.format.scale_groups

    @property
    def group(self) -> int:
        """Inputs of a scale group."""
        return self.format.shape[1] // self.groups

    @cached_property
    def factors(self) -> dict[FactorName, Self]:
        """The storage of the adapter's factors, by name."""
        if self.format.adapter is None:
            return {}
        made = type(self)
        return {name: made(self.format.factor(name)) for name in FACTORS}  # type: ignore[call-arg]

    @abstractmethod
    def own_shapes(self) -> Shapes:
        """Shape and type of the stored tensors, the adapter's and the scale of inputs left out."""

    @abstractmethod
    def pack_values(self, values: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The stored tensors of floats.  values, mask: [out, in], the mask bool"""

    @abstractmethod
    def unpack_values(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Inverse of `pack_values`; no mask where it is not stored."""

    @abstractmethod
    def pack_codes(self, base: Numbers, mask: Tensor | None) -> dict[str, Tensor]:
        """The stored tensors of codes, scales and zero points.  mask: bool [out, in]"""

    @abstractmethod
    def unpack_codes(self, tensors: Mapping[str, Tensor]) -> Codes:
        """Inverse of `pack_codes`."""

    def add_outliers(self, weight: WithOutliers, found: dict[str, Tensor]) -> None:
        """Store outliers with what is stored of their base; a kernel without a place for them has
        refused them.
        """
        raise AssertionError(self.format.label)

    def unpack_outliers(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Inverse of `add_outliers`.  -> columns, values: [out, room]"""
        raise AssertionError(self.format.label)

    def shapes(self) -> Shapes:
        """See `WeightStorage`."""
        return self.part_shapes()

    def pack(self, weight: CompressedWeight) -> dict[str, Tensor]:
        """See `WeightStorage`."""
        return self.pack_parts(weight)

    def unpack(self, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """The weight that `pack` stored.

        A mask that is not stored comes back as the entries that are not zero, and as many others as
        N:M asks for.
        """
        return self.unpack_parts(tensors)

    def part_shapes(self) -> Shapes:
        """Shape and type of everything that is stored, the adapter's factors included."""
        found, grid = self.own_shapes(), self.format.grid
        if grid and grid.input_scale:
            found["input_scale"] = (self.format.shape[1:], getattr(torch, grid.input_scale))
        for name, factor in self.factors.items():
            found |= {f"{name}_{key}": of for key, of in factor.part_shapes().items()}
        return found

    def pack_parts(self, weight: CompressedWeight) -> dict[str, Tensor]:
        """Everything that is stored, by the names of `part_shapes`."""
        if format_of(weight) != replace(self.format, inputs=None):
            kind = type(self).__name__.lower()
            msg = f"{kind} of {self.format.label} cannot hold a weight of {format_of(weight).label}"
            raise ConfigError(msg)
        base = weight.base if isinstance(weight, Adapted) else weight
        mask = None
        outliers = base if isinstance(base, WithOutliers) else None
        base = outliers.base if outliers else base
        if isinstance(base, Sparse):
            mask, base = base.mask, base.values
        if isinstance(base, Dense):
            found = self.pack_values(base.values, mask)
        else:
            # `refusal` has refused values of other kinds.
            assert isinstance(base, Numbers)
            found = self.pack_codes(base, mask)
            if isinstance(base, Quantized) and base.input_scale is not None:
                found["input_scale"] = base.input_scale
        if outliers:
            self.add_outliers(outliers, found)
        if isinstance(weight, Adapted):
            for name, factor in self.factors.items():
                values = getattr(weight, name)
                packed = factor.pack_parts(Dense(values) if isinstance(values, Tensor) else values)
                found |= {f"{name}_{key}": tensor for key, tensor in packed.items()}
        return {name: found[name].contiguous() for name in self.part_shapes()}

    def unpack_parts(self, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Inverse of `pack_parts`."""
        base: Dense | Numbers | Sparse | WithOutliers
        if self.format.dtype:
            values, mask = self.unpack_values(tensors)
            base = Dense(values)
        else:
            found = self.unpack_codes(tensors)
            base, mask = self._coded(found, tensors.get("input_scale")), found.mask
        if pattern := self.format.pattern:
            mask = _mask_of(base.dequantize(), pattern) if mask is None else mask
            base = Sparse(base, mask, pattern)
        if self.format.outliers:
            base = WithOutliers(base, *self.unpack_outliers(tensors))
        if not self.factors:
            return base
        return Adapted(base, *(self._unpack_factor(name, tensors) for name in FACTORS))

    def _unpack_factor(self, name: FactorName, tensors: Mapping[str, Tensor]) -> Factor:
        factor = self.factors[name]
        parts = {key: tensors[f"{name}_{key}"] for key in factor.part_shapes()}
        found = factor.unpack_parts(parts)
        if isinstance(found, Dense):
            return found.values
        assert not isinstance(found, Adapted | WithOutliers)  # a factor has neither
        return found

    def _coded(self, found: Codes, input_scale: Tensor | None) -> Numbers:
        if own := self.format.row_codebook:
            assert found.levels is not None
            return RowCoded(found.codes, found.levels[: own.tables].contiguous())
        if nested := self.format.nested:
            assert found.nested is not None
            return nested.made(found.codes, found.nested)
        grid = self.format.coded
        if grid is None or found.scale is None:
            msg = f"format {self.format.label} has no codes"
            raise AssertionError(msg)
        rows, _ = grid.scale_shape  # one scale for the tensor is stored for every row
        codes, zero_point = found.codes, found.zero_point
        if isinstance(grid, Codebook):
            scale = found.scale[:rows].contiguous().view(getattr(torch, grid.scale_dtype))
            coded = Coded(codes, scale, grid.table, found.outer_scale)
            return coded if found.mask is None else coded.cleared(found.mask)
        if zero_point is None:
            codes = (codes.to(torch.int16) - 2 ** (grid.bits - 1)).to(torch.int8)
        else:
            zero_point = zero_point[:rows].contiguous()
        if found.mask is not None:
            codes = codes * found.mask
        scale = found.scale[:rows].contiguous()
        return Quantized(codes, scale, zero_point, grid.bits, input_scale=input_scale)


def _mask_of(values: Tensor, pattern: Pattern) -> Tensor:
    """A mask of the pattern that keeps all that is not zero."""
    kept = values != 0
    if isinstance(pattern, Tiles):
        return mask_of(values, pattern.size)
    if not isinstance(pattern, NM):
        return kept
    groups = kept.view(values.shape[0], -1, pattern.m)
    first = groups.to(torch.uint8).argsort(dim=2, descending=True, stable=True)[..., : pattern.n]
    return torch.zeros_like(groups).scatter_(2, first, True).view(values.shape)
