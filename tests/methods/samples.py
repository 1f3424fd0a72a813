"""Random weights of every storable kind, for tests of formats and of methods."""

from dataclasses import dataclass

import torch

from trinity.methods.contract import LayerStats
from trinity.methods.formats import (
    NM,
    Adapted,
    Coded,
    CompressedWeight,
    Dense,
    Nested,
    Pattern,
    Quantized,
    RowCoded,
    SignSum,
    Sparse,
    Transposed,
    VectorCoded,
)
from trinity.methods.formats.adapter import Factor
from trinity.methods.formats.level_tables import bits_of, levels
from trinity.methods.formats.vector_codebook import code_dtype


@dataclass(frozen=True)
class GridCase:
    """A grid; groups 0 is one scale for the tensor, 1 one for each channel."""

    bits: int
    symmetric: bool = True
    groups: int = 0
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        """The test's id."""
        kind = "signed" if self.symmetric else "unsigned"
        return f"{self.bits}bit-{kind}-groups{self.groups}-{str(self.dtype).removeprefix('torch.')}"


GRIDS = [
    GridCase(bits, symmetric, groups)
    for bits in (2, 3, 4, 8)
    for symmetric in (True, False)
    for groups in (0, 1, 3)
] + [GridCase(4, True, 3, torch.float16), GridCase(4, False, 1, torch.bfloat16)]


def random_quantized(out: int, d_in: int, case: GridCase) -> Quantized:
    """Codes over the whole range, a scale and a zero point for each group."""
    scale_shape = (out, case.groups) if case.groups else (1, 1)
    scale = (torch.rand(scale_shape) + 0.1).to(case.dtype)
    if case.symmetric:
        half = 2 ** (case.bits - 1)
        codes = torch.randint(-half, half, (out, d_in), dtype=torch.int8)
        return Quantized(codes, scale, None, case.bits)
    codes = torch.randint(0, 2**case.bits, (out, d_in), dtype=torch.uint8)
    zero_point = torch.randint(0, 2**case.bits, scale_shape, dtype=torch.uint8)
    return Quantized(codes, scale, zero_point, case.bits)


def indexed(weight: Quantized, groups: int) -> Quantized:
    """The same codes with groups scattered over the inputs; `groups` need not divide them."""
    out, d_in = weight.shape
    index = torch.randint(0, groups, (d_in,), dtype=torch.int32)
    zero_point = weight.zero_point
    if zero_point is not None:
        zero_point = torch.randint(0, 2**weight.bits, (out, groups), dtype=torch.uint8)
    scale = (torch.rand(out, groups) + 0.1).to(weight.scale.dtype)
    return Quantized(weight.codes, scale, zero_point, weight.bits, index)


def random_coded(
    out: int, d_in: int, table: str, groups: int, dtype: torch.dtype, *, outer: bool = False
) -> Coded:
    """Codes over the whole table, and a scale for each group."""
    known = torch.arange(2 ** bits_of(table), dtype=torch.uint8)[levels(table).isfinite()]
    codes = known[torch.randint(0, len(known), (out, d_in))]
    scale = (torch.rand(out, groups) + 0.1).to(dtype)
    return Coded(codes, scale, table, torch.rand(1, 1) + 0.1 if outer else None)


def random_row_coded(out: int, d_in: int, bits: int, dtype: torch.dtype, tables: int) -> RowCoded:
    """Codes over tables of random levels."""
    codes = torch.randint(0, 2**bits, (out, d_in)).to(torch.uint8)
    return RowCoded(codes, torch.randn(tables, 2**bits).to(dtype))


def random_vectors(
    out: int, d_in: int, bits: int, group: int, books: int, dtype: torch.dtype = torch.float16
) -> VectorCoded:
    """Codes of random vectors, under random scales."""
    codes = torch.randint(0, 2**bits, (out, d_in // group, books)).to(code_dtype(bits))
    vectors = torch.randn(books, 2**bits, group).to(dtype)
    return VectorCoded(codes, vectors, (torch.rand(out, 1) + 0.5).to(dtype))


def random_nested(out: int, d_in: int, bits: int, groups: int, rows: int = 16) -> Nested:
    """Codes over whole grids, whose scales and zero points are codes too."""
    second = (-(-out // rows), groups)
    return Nested(
        torch.randint(0, 2**bits, (out, d_in)).to(torch.uint8),
        torch.randint(0, 8, (out, groups)).to(torch.uint8),
        torch.randint(0, 8, (out, groups)).to(torch.uint8),
        (torch.rand(second) + 0.1).half(),
        torch.rand(second).half(),
        torch.randn(second).half(),
        torch.rand(second).half(),
        bits,
        rows=rows,
    )


def random_sign_sum(out: int, d_in: int, terms: int, rank: int, dtype: torch.dtype) -> SignSum:
    """Random signs and factors; magnitudes of either sign."""
    signs = torch.randint(0, 2, (terms, out, d_in)).to(torch.uint8)
    U, V = torch.randn(terms, out, rank), torch.randn(terms, rank, d_in)
    return SignSum(signs, U.to(dtype), V.to(dtype))


def random_mask(out: int, d_in: int, pattern: Pattern) -> torch.Tensor:
    """A mask that obeys a pattern.  -> bool [out, in]"""
    if not isinstance(pattern, NM):
        return torch.rand(out, d_in) >= pattern.sparsity
    order = torch.rand(out, d_in // pattern.m, pattern.m).argsort(-1)
    return (order < pattern.n).reshape(out, d_in)


def with_adapter(base: Dense | Quantized | Sparse, rank: int, dtype: torch.dtype) -> Adapted:
    """A random adapter beside a weight."""
    out, d_in = base.shape
    return Adapted(base, torch.randn(out, rank).to(dtype), torch.randn(rank, d_in).to(dtype))


def packed_adapters(base: Dense | Quantized | Sparse) -> list[Adapted]:
    """Adapters of rank 8 whose factors are stored in every packed way.  base: in divisible by 8"""
    out, d_in = base.shape
    B, A = torch.randn(out, 8).half(), torch.randn(8, d_in).half()
    case, mask, pattern = (
        GridCase(4, groups=2, dtype=torch.float16),
        random_mask(8, d_in, NM(2, 4)),
        NM(2, 4),
    )
    codes_b, codes_a = random_quantized(out, 8, case), random_quantized(8, d_in, case)
    turned = GridCase(3, symmetric=False, groups=1)
    return [
        Adapted(base, codes_b, codes_a),
        Adapted(base, B, codes_a),
        Adapted(base, codes_b, A),
        Adapted(base, B, Sparse(Dense(A), mask, pattern)),
        Adapted(base, codes_b, Sparse(codes_a, mask, pattern)),
        Adapted(
            base,
            Transposed(random_quantized(8, out, turned)),
            Transposed(random_quantized(d_in, 8, turned)),
        ),
    ]


def every_kind() -> dict[str, CompressedWeight]:
    """One weight [8, 16] of every kind that is tuned."""
    pattern = NM(2, 4)
    quantized = random_quantized(8, 16, GridCase(4, groups=2))
    sparse = Sparse(quantized, random_mask(8, 16, pattern), pattern)
    kinds = [
        Dense(torch.randn(8, 16)),
        quantized,
        random_quantized(8, 16, GridCase(3, symmetric=False, groups=1)),
        random_coded(8, 16, "nf4", 2, torch.float32),
        Sparse(Dense(torch.randn(8, 16).bfloat16()), sparse.mask, pattern),
        sparse,
        Sparse(random_coded(8, 16, "nf4", 2, torch.float8_e8m0fnu), sparse.mask, pattern),
        random_vectors(8, 16, 4, 4, 2, torch.float32),
        with_adapter(sparse, 4, torch.float16),
        *packed_adapters(sparse),
    ]
    return {f"layer{i}": weight for i, weight in enumerate(kinds)}


def random_stats(d_in: int, tokens: int = 64) -> LayerStats:
    """Statistics of correlated inputs whose channels differ in size."""
    X = torch.randn(tokens, d_in) @ torch.randn(d_in, d_in) * torch.logspace(-1, 1, d_in)
    return LayerStats(
        tokens=tokens,
        x_norm=X.square().sum(0).sqrt(),
        x_mean_abs=X.abs().mean(0),
        H=2 / tokens * X.T @ X,
        X=X,
    )


def tensors_of(weight: CompressedWeight) -> dict[str, torch.Tensor]:
    """Every tensor that a weight holds, by a name that says where."""
    if isinstance(weight, Adapted):
        return {
            **tensors_of(weight.base),
            **factor_tensors("B", weight.B),
            **factor_tensors("A", weight.A),
        }
    if isinstance(weight, Sparse):
        return {**tensors_of(weight.values), "mask": weight.mask}
    if isinstance(weight, Dense):
        return {"values": weight.values}
    if isinstance(weight, Coded | RowCoded | VectorCoded):
        return {"codes": weight.codes, **weight.stored()}
    assert isinstance(weight, Quantized)
    found = {"codes": weight.codes, "scale": weight.scale}
    optional = {
        "zero_point": weight.zero_point,
        "group_index": weight.group_index,
        "input_scale": weight.input_scale,
    }
    return found | {name: tensor for name, tensor in optional.items() if tensor is not None}


def assert_same_weight(found: CompressedWeight, expected: CompressedWeight) -> None:
    """Same kind, same tensors, bit for bit."""
    assert type(found) is type(expected)
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def factor_tensors(name: str, factor: Factor) -> dict[str, torch.Tensor]:
    """Every tensor that a factor holds."""
    if isinstance(factor, torch.Tensor):
        return {name: factor}
    stored = factor.values if isinstance(factor, Transposed) else factor
    return {f"{name}.{part}": tensor for part, tensor in tensors_of(stored).items()}
