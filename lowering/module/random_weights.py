"""Random weights of a format, to try or to time a product with: they need no model."""

from dataclasses import replace

import torch
from torch import Tensor

from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import (
    NM,
    Adapted,
    Codebook,
    Coded,
    CompressedWeight,
    Dense,
    Factor,
    Floats,
    Grid,
    Nested,
    NestedGrid,
    OutlierFormat,
    Pattern,
    Quantized,
    RowCodebook,
    RowCoded,
    Sparse,
    Tiles,
    Values,
    VectorCodebook,
    VectorCoded,
    WeightFormat,
    WithOutliers,
    format_of,
    tiles,
)
from trinity.methods.formats.vector_codebook import code_dtype


def random_weight(weight_format: WeightFormat) -> CompressedWeight:
    """Random numbers of a format, the same at every call; UnsupportedError for one of which none
    can be made.
    """
    generator = torch.Generator().manual_seed(0)
    shape = weight_format.shape
    values = _values(weight_format, generator)
    base: Values | Sparse | WithOutliers = values
    if weight_format.pattern:
        base = Sparse(values, _mask(shape, weight_format.pattern, generator), weight_format.pattern)
    if found := weight_format.outliers:
        assert not isinstance(base, WithOutliers)
        base = _with_outliers(base, found, generator)
    made: CompressedWeight = base
    if weight_format.adapter:
        made = Adapted(base, *(_factor(weight_format.factor(name)) for name in ("B", "A")))
    if format_of(made) != replace(weight_format, inputs=None):
        msg = f"no random weight of format '{weight_format.label}' can be made yet."
        raise UnsupportedError(msg)
    return made


def _values(weight_format: WeightFormat, generator: torch.Generator) -> Values:
    shape, values = weight_format.shape, weight_format.values
    if isinstance(values, Floats):
        floats = torch.randn(shape, generator=generator)
        return Dense(floats.to(getattr(torch, values.dtype)))
    if isinstance(values, Codebook):
        scale = torch.rand(values.scale_shape, generator=generator) + 0.5
        outer = torch.full((1, 1), 0.75) if values.outer_scale else None
        codes = torch.zeros(shape, dtype=torch.uint8)
        start = Coded(codes, scale.to(getattr(torch, values.scale_dtype)), values.table, outer)
        return start.rounded(torch.randn(shape, generator=generator))
    if isinstance(values, RowCodebook):
        levels = torch.randn(values.tables, 2**values.bits, generator=generator)
        codes = torch.randint(2**values.bits, shape, generator=generator).to(torch.uint8)
        return RowCoded(codes, levels.to(getattr(torch, values.dtype)))
    if isinstance(values, NestedGrid):
        return _nested(shape, values, generator)
    if isinstance(values, VectorCodebook):
        return _vectors(shape, values, generator)
    if not isinstance(values, Grid):
        msg = f"no random weight of format '{weight_format.label}' can be made yet."
        raise UnsupportedError(msg)
    return _codes(shape, values, generator)


def _nested(shape: tuple[int, int], values: NestedGrid, generator: torch.Generator) -> Nested:
    """Zero points between the codes, which need be no integers."""
    first = [(shape[0], values.groups)] * 2
    codes, scale, zero = (
        torch.randint(2**bits, size, generator=generator).to(torch.uint8)
        for bits, size in zip(
            (values.bits, *[values.second_bits] * 2), (shape, *first), strict=True
        )
    )
    second = (-(-shape[0] // values.rows), values.groups)
    dtype, largest = getattr(torch, values.dtype), 2**values.bits - 1
    steps = 2**values.second_bits
    unit = [torch.rand(second, generator=generator) for _ in range(4)]
    scale_grid = [((unit[0] + 0.5) / largest).to(dtype), (unit[1] / largest / steps).to(dtype)]
    zero_grid = [(unit[2] * largest / 2).to(dtype), (unit[3] * largest / 2 / steps).to(dtype)]
    sizes = values.bits, values.second_bits, values.rows
    (scale_low, scale_step), (zero_low, zero_step) = scale_grid, zero_grid
    return Nested(codes, scale, zero, scale_low, scale_step, zero_low, zero_step, *sizes)


def _vectors(shape: tuple[int, int], of: VectorCodebook, generator: torch.Generator) -> VectorCoded:
    (out, d_in), count = shape, 2**of.bits
    codes = torch.randint(count, (out, d_in // of.group, of.books), generator=generator)
    tables = torch.randn(of.books, count, of.group, generator=generator)
    scale = torch.rand(out, 1, generator=generator) + 0.5
    return VectorCoded(
        codes.to(code_dtype(of.bits)),
        tables.to(getattr(torch, of.dtype)),
        scale.to(getattr(torch, of.scale_dtype)),
    )


def _with_outliers(
    base: Values | Sparse, found: OutlierFormat, generator: torch.Generator
) -> WithOutliers:
    """As many as there is room for, in every row."""
    out, d_in = base.shape
    columns = torch.rand(out, d_in, generator=generator).argsort(-1)[:, : found.room]
    values = torch.randn(columns.shape, generator=generator)
    return WithOutliers(base, columns, values.to(getattr(torch, found.dtype)))


def _codes(shape: tuple[int, int], grid: Grid, generator: torch.Generator) -> Quantized:
    scale = torch.rand(grid.scale_shape, generator=generator) + 0.5
    scale = (scale / 2**grid.bits).to(getattr(torch, grid.scale_dtype))
    codes = torch.randint(2**grid.bits, shape, generator=generator)
    if grid.symmetric:
        centred = (codes - 2 ** (grid.bits - 1)).to(torch.int8)
        base = Quantized(centred, scale, None, grid.bits)
    else:
        zero = torch.randint(2**grid.bits, grid.scale_shape, generator=generator)
        base = Quantized(codes.to(torch.uint8), scale, zero.to(torch.uint8), grid.bits)
    if not grid.input_scale:
        return base
    factors = torch.rand(shape[1], generator=generator) + 0.5
    return replace(base, input_scale=factors.to(getattr(torch, grid.input_scale)))


def _factor(weight_format: WeightFormat) -> Factor:
    found = random_weight(weight_format)
    assert not isinstance(found, Adapted | WithOutliers)  # a factor has neither
    return found.values if isinstance(found, Dense) else found


def _mask(shape: tuple[int, int], pattern: Pattern, generator: torch.Generator) -> Tensor:
    if isinstance(pattern, NM):
        groups = (shape[0], shape[1] // pattern.m, pattern.m)
        places = torch.rand(groups, generator=generator).argsort(-1)
        return (places < pattern.n).view(shape)
    if isinstance(pattern, Tiles):
        return _tiled_mask(shape, pattern, generator)
    places = torch.rand(shape, generator=generator).argsort(-1)
    return places >= round(shape[1] * pattern.sparsity)


def _tiled_mask(shape: tuple[int, int], pattern: Tiles, generator: torch.Generator) -> Tensor:
    """2:4 in the first tiles whose weights make the pattern's share."""
    rows, columns = tiles.grid(shape, pattern.size)
    inside = torch.zeros(rows * pattern.size, columns * pattern.size, dtype=torch.int64)
    inside[: shape[0], : shape[1]] = 1
    areas = inside.view(rows, pattern.size, columns, pattern.size).sum((1, 3)).flatten()
    reached = areas.cumsum(0) / (shape[0] * shape[1]) <= pattern.share
    sparse = reached.view(rows, columns)
    if tiles.share_of(sparse, shape, pattern.size) != pattern.share:
        msg = f"no number of first tiles of {list(shape)} makes {pattern}"
        raise AssertionError(msg)
    return _mask(shape, NM(2, 4), generator) | ~tiles.expanded(sparse, shape, pattern.size)
