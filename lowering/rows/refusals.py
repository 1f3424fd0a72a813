"""Which formats no compiled module can hold, and why."""

from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import (
    NM,
    Codebook,
    Floats,
    Grid,
    NestedGrid,
    RowCodebook,
    VectorCodebook,
    WeightFormat,
)

VECTOR_BITS, VECTOR_GROUPS = 8, (4, 8, 16)


def check_held(weight_format: WeightFormat) -> None:
    """UnsupportedError says why a format cannot be held packed, and what to do."""
    reason = _values(weight_format) or _inputs(weight_format) or _groups(weight_format)
    if reason:
        raise UnsupportedError(f"format {weight_format.label}: {reason}")
    if weight_format.adapter:
        _check_adapter(weight_format)


def _values(weight_format: WeightFormat) -> str | None:
    values, grid = weight_format.values, weight_format.grid
    if isinstance(values, VectorCodebook):
        return _vectors(weight_format, values)
    if not isinstance(values, Floats | Grid | Codebook | RowCodebook | NestedGrid):
        return (
            f"compiled modules hold floats, uniform grids and tables of levels, and not values of "
            f"the kind '{values.kind}'. Evaluate it with the torch engine, which decodes it."
        )
    if isinstance(values, RowCodebook) and weight_format.pattern:
        return (
            "compiled modules hold a row's own levels where none is masked, because none of them "
            "need be zero. Evaluate it with the torch engine."
        )
    if isinstance(values, NestedGrid) and weight_format.pattern:
        return (
            "compiled modules hold codes under two levels of scales where none is masked, because "
            "0 need not be a value of their grids. Evaluate it with the torch engine."
        )
    if grid is not None and grid.indexed:
        return (
            "an index assigns inputs to scale groups (act-order), and compiled modules read groups "
            "of consecutive inputs. Evaluate it with the torch engine, or quantize with "
            "`group_fit: static` or without `act_order`."
        )
    return None


def _vectors(weight_format: WeightFormat, values: VectorCodebook) -> str | None:
    if values.bits != VECTOR_BITS or values.group not in VECTOR_GROUPS:
        return (
            f"compiled modules hold vectors of {', '.join(map(str, VECTOR_GROUPS))} inputs under "
            f"codes of {VECTOR_BITS} bits. Evaluate it with the torch engine."
        )
    if weight_format.outliers or weight_format.adapter or weight_format.inputs:
        return (
            "compiled modules hold vectors of tables without outliers, adapters or rounded inputs. "
            "Evaluate it with the torch engine."
        )
    return None


def _inputs(weight_format: WeightFormat) -> str | None:
    inputs = weight_format.inputs
    if inputs is None or inputs.kind in ("int8", None):
        return None
    return (
        f"compiled modules round inputs to int8 and not to {inputs.kind}. Compress with "
        f"`inputs: {{kind: int8}}`, or evaluate it with the torch engine."
    )


def _groups(weight_format: WeightFormat) -> str | None:
    pattern, codes = weight_format.pattern, weight_format.coded
    if not isinstance(pattern, NM) or codes is None or codes.scale_shape[1] == 1:
        return None
    size = weight_format.shape[1] // codes.scale_shape[1]
    if size % pattern.m == 0:
        return None
    return (
        f"scale groups of {size} inputs cut through groups of {pattern.m}. Use a group size "
        f"divisible by {pattern.m}."
    )


def _check_adapter(weight_format: WeightFormat) -> None:
    adapter = weight_format.adapter
    assert adapter
    if any(factor and factor.transposed for factor in (adapter.B, adapter.A)):
        msg = (
            f"format {weight_format.label}: compiled modules read scale groups of an adapter along "
            f"its inputs. Set `adapter_groups_along: inputs`, or evaluate it with the torch engine."
        )
        raise UnsupportedError(msg)
    for name in ("B", "A"):
        factor = weight_format.factor(name)
        check_held(factor)
        if factor.codebook or factor.row_codebook or factor.nested or factor.vectors:
            msg = (
                f"format {weight_format.label}: compiled modules hold adapters of floats and "
                f"uniform grids, and not of {factor.label}. Evaluate it with the torch engine."
            )
            raise UnsupportedError(msg)
