"""What every method that adds an adapter shares: its rank, and how its factors are stored.

Two factors in float16 at a tenth of the rank cost more bits than 2:4 weights of 4 bits do, so SLiM
quantizes them too (SLiM-LoRA^Q, arXiv:2410.09615): group AbsMax, 4 bits.

Where paper, code and this file part:
- Groups. The code keeps the factors as [in, rank] and [rank, out] and by default shares a scale
  down the *first* dimension: along what is summed over, which is what packed kernels read. Here
  that is `adapter_groups_along: inputs`, the rows of A [rank, in] and of B [out, rank]. Its option
  of the last dimension is `outputs`.
- Rank. The code's groups must divide both sides of a factor, so it rounds the rank up to a multiple
  of the group (`up`); its speed tests round down. Factors that stay floats keep the exact rank.
- Rounding is to the nearest code, half to even; the code rounds ties toward zero.  Scales are
  stored in `dtype`, and codes are taken with the scale as it is stored.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from trinity.methods import rtn
from trinity.methods.contract import MethodConfig
from trinity.methods.formats import NM, Dense, Factor, Quantized, Sparse, Transposed
from trinity.methods.options import Bits, FloatName, GroupSize, PatternOption, cast
from trinity.methods.tensors import pattern_problem, quantize

# 1.0 is refused: it could mean all of the smaller side or a rank of one.
Rank = Annotated[float, Field(gt=0, lt=1)] | Annotated[int, Field(gt=0, strict=True)]


class AdapterConfig(MethodConfig):
    """Defaults are the paper's for adapters of 16 bits; `adapter_bits: 4` makes them SLiM-LoRA^Q.

    rank: a fraction of min(out, in), rounded down, if below 1; else the rank itself
    dtype: of the stored factors, or of their scales. The code uses bfloat16; float16 has three more
        bits of mantissa and is loaded by every GPU target.
    adapter_bits: of both factors; none leaves them floats
    adapter_group: entries of a factor that share one scale
    adapter_groups_along: what such a group runs along, see the module's text
    rank_multiple: the rank is rounded to a multiple of this; none means the adapter's group where
        it is quantized, else 1
    rank_rounding: which way
    adapter_pattern: N:M of A along its inputs (the paper's L)
    """

    rank: Rank = 0.1
    dtype: FloatName = "float16"
    adapter_bits: Bits | None = None
    adapter_group: GroupSize = 128
    adapter_groups_along: Literal["inputs", "outputs"] = "inputs"
    rank_multiple: PositiveInt | None = None
    rank_rounding: Literal["up", "down"] = "up"
    adapter_pattern: PatternOption | None = None


def rank_of(shape: tuple[int, int], rank: float) -> int:
    """Adapter rank of a layer [out, in]; at least 1, at most min(out, in)."""
    smaller = min(shape)
    return min(smaller, int(rank) if rank >= 1 else max(1, int(rank * smaller)))


def adapter_rank(shape: tuple[int, int], config: AdapterConfig) -> int:
    """`rank_of`, rounded as the config says; at least one multiple, at most min(out, in)."""
    exact, multiple = rank_of(shape, config.rank), _multiple(config)
    if config.rank_rounding == "up":
        return min(min(shape), -(-exact // multiple) * multiple)
    return min(min(shape), max(1, exact // multiple) * multiple)


def adapter_problem(shape: tuple[int, int], config: AdapterConfig) -> str | None:
    """Why the factors of a layer [out, in] cannot be stored as the config says, or None."""
    (out, d_in), rank, pattern = shape, adapter_rank(shape, config), config.adapter_pattern
    if pattern is not None:
        if not isinstance(pattern, NM):
            return f"adapter_pattern {pattern} is not N:M"
        if config.adapter_bits and config.adapter_groups_along == "outputs":
            return "adapter_pattern runs along the inputs, so adapter_groups_along must be inputs"
        if found := pattern_problem((rank, d_in), pattern):
            return f"adapter_{found}"
    group = config.adapter_group
    if config.adapter_bits and isinstance(group, int):
        along = config.adapter_groups_along
        other, size = ("in", d_in) if along == "inputs" else ("out", out)
        for name, length in (("rank", rank), (other, size)):
            if length % group:
                return (
                    f"adapter_group {group} does not divide {name} = {length} (choose a divisor "
                    f"of {other}, and a rank_multiple that it divides)"
                )
    return None


def stored(
    B: Tensor, A: Tensor, mask: Tensor | None, config: AdapterConfig
) -> tuple[Factor, Factor]:
    """The factors in the form that the config asks for.

    B: [out, rank]  A: [rank, in]  mask: bool [rank, in] or None, what A keeps of `adapter_pattern`
    """
    if config.adapter_bits is None:
        low: Tensor | Quantized = cast(A, config.dtype)
        high: Factor = cast(B, config.dtype)
    elif config.adapter_groups_along == "inputs":
        low, high = (
            quantized(A, config.adapter_bits, config),
            quantized(B, config.adapter_bits, config),
        )
    else:
        turned = (
            quantized(factor.T.contiguous(), config.adapter_bits, config) for factor in (B, A)
        )
        high, transposed = (Transposed(factor) for factor in turned)
        return high, transposed
    if mask is None or config.adapter_pattern is None:
        return high, low
    values = Dense(low) if isinstance(low, Tensor) else low
    return high, Sparse(values, mask, config.adapter_pattern)


def quantized(factor: Tensor, bits: Bits, config: AdapterConfig) -> Quantized:
    """Group AbsMax along the rows of a factor.  factor: [rows, columns]"""
    options = rtn.RtnConfig(bits=bits, group_size=config.adapter_group)
    shape = rtn.scale_shape((factor.shape[0], factor.shape[1]), options)
    scale = cast(rtn.absmax_scale(factor, shape, bits), config.dtype)
    # A group too small for the type's scale becomes zeros rather than an error: nothing of an
    # adapter that small is seen beside its weight.
    return quantize(factor, scale.clamp_min(torch.finfo(scale.dtype).tiny), None, bits)


def _multiple(config: AdapterConfig) -> int:
    if config.rank_multiple is not None:
        return config.rank_multiple
    grouped = config.adapter_bits is not None and isinstance(config.adapter_group, int)
    return int(config.adapter_group) if grouped else 1
