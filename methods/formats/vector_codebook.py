"""Values of several tables of vectors, added (AQLM, Egiazarian et al., arXiv:2401.06118).

    W[i, g j : g (j + 1)] = scale_i * sum_k C_k[code_ijk]

A code names one of the 2^bits vectors of a table, and a vector stands for g consecutive inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import embedding

from trinity.methods.errors import ConfigError
from trinity.methods.formats.bits import pack_bits, packed_width, unpack_bits
from trinity.methods.formats.dense import FLOAT_DTYPES
from trinity.methods.formats.scales import check_positive

BITS = (4, 8, 12, 16)
SWEEPS = 100  # of `rounded`; it ends where nothing moves, after a few
_AT_ONCE = 1 << 22  # distances


@dataclass(frozen=True)
class VectorCodebook:
    """What such values are without their numbers.

    books: tables, of which one vector each is added   bits: of a code   group: inputs of a vector
    dtype, scale_dtype: torch's names of the types of vectors and scales
    """

    kind: ClassVar[str] = "vector_codebook"
    books: int
    bits: int
    group: int
    dtype: str
    scale_dtype: str

    @property
    def numbers(self) -> "type[VectorCoded]":
        """Codes of vectors."""
        return VectorCoded

    def words(self, d_in: int) -> list[str]:
        """Tables, bits and inputs of a vector."""
        return [f"{self.books}x{self.bits}-bit vectors of {self.group}"]

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return {
            "books": self.books,
            "bits": self.bits,
            "group": self.group,
            "dtype": self.dtype,
            "scale_dtype": self.scale_dtype,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "VectorCodebook":
        """Read what `to_json` wrote; ConfigError, KeyError or TypeError if it is not that."""
        made = VectorCodebook(**data)
        if made.bits not in BITS:
            raise ConfigError(f"bits: {made.bits!r} is not {', '.join(map(str, BITS))}.")
        for count in (data["books"], data["group"]):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ConfigError(f"vectors: {count!r} is no number of tables or inputs.")
        known = {str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES}
        for dtype in (made.dtype, made.scale_dtype):
            if dtype not in known:
                raise ConfigError(f"dtype: {dtype!r} is no type of vectors or scales.")
        return made

    def restored(self, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> "VectorCoded":
        """The weight `stored` gave."""
        codes = unpack_codes(
            tensors["weight_packed"], self.bits, shape[1] // self.group * self.books
        )
        codes = codes.view(shape[0], shape[1] // self.group, self.books)
        return VectorCoded(codes, tensors["weight_codebooks"], tensors["weight_scale"])

    def restored_kept(
        self, mask: Tensor, kept: tuple[int, ...], tensors: Mapping[str, Tensor]
    ) -> "VectorCoded":
        """Refused: see `VectorCoded.cleared`."""
        raise _masked(self.group)


@dataclass(frozen=True, eq=False)
class VectorCoded:
    """`scale * sum_k codebooks[k, codes[:, :, k]]`.

    codes: [out, in // g, K], below 2^bits; uint8 for at most 8 bits, int32 for more
    codebooks: float32, float16 or bfloat16, [K, 2^bits, g], finite
    scale: float32, float16 or bfloat16, [out, 1], positive
    """

    codes: Tensor
    codebooks: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        """Refuse codes without a vector, and vectors or scales that do not fit."""
        codes, books = self.codes, self.codebooks
        sizes = [2**bits for bits in BITS]
        fits = books.ndim == 3 and books.dtype in FLOAT_DTYPES and 0 not in books.shape
        if not fits or books.shape[1] not in sizes:
            msg = (
                f"codebooks: expected floats [tables, n, inputs], n one of "
                f"{', '.join(map(str, sizes))}, found {books.dtype} {list(books.shape)}."
            )
            raise ConfigError(msg)
        if not bool(books.isfinite().all()):
            raise ConfigError(f"codebooks: holds entries that are not finite in {books.dtype}.")
        dtype = code_dtype(self.bits)
        shaped = codes.ndim == 3 and 0 not in codes.shape and codes.shape[2] == len(books)
        if not shaped or codes.dtype != dtype:
            msg = (
                f"codes: expected {dtype} [out, in // {self.group}, {len(books)}], "
                f"found {codes.dtype} {list(codes.shape)}."
            )
            raise ConfigError(msg)
        least, most = (int(code) for code in torch.aminmax(codes))
        if least < 0 or most >= 2**self.bits:
            raise ConfigError(f"codes: {least}..{most} is outside 0..{2**self.bits - 1}.")
        scale, rows = self.scale, codes.shape[0]
        if scale.dtype not in FLOAT_DTYPES or tuple(scale.shape) != (rows, 1):
            msg = f"scale: expected floats [{rows}, 1], found {scale.dtype} {list(scale.shape)}."
            raise ConfigError(msg)
        check_positive(scale, "scale")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.codes.shape[0], self.codes.shape[1] * self.group)

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.codebooks.shape[1].bit_length() - 1

    @property
    def group(self) -> int:
        """Inputs of a vector."""
        return self.codebooks.shape[2]

    @property
    def values_format(self) -> VectorCodebook:
        """The tables without their numbers."""
        dtype, scales = (
            str(of.dtype).removeprefix("torch.") for of in (self.codebooks, self.scale)
        )
        return VectorCodebook(len(self.codebooks), self.bits, self.group, dtype, scales)

    def rounded(self, W: Tensor) -> "VectorCoded":
        """Of each group the nearest vector, one table after another, until no code moves.

        With one table this is the nearest there is.  With several it starts at the codes there
        are, and none of them alone can come nearer.  W: [out, in]
        """
        books = self.codebooks.float()
        codes = self.codes.long().flatten(0, 1)
        left = (W.float() / self.scale.float()).reshape(-1, self.group)
        for k, book in enumerate(books):
            left = left - book[codes[:, k]]
        for _ in range(SWEEPS):
            before = codes.clone()
            for k, book in enumerate(books):
                now = book[codes[:, k]]
                wanted = left + now
                found = nearest_vectors(wanted, book)
                other = book[found]
                nearer = (wanted - other).square().sum(1) < left.square().sum(1)
                codes[:, k] = torch.where(nearer, found, codes[:, k])
                left = wanted - torch.where(nearer[:, None], other, now)
            if torch.equal(codes, before):
                break
        return replace(self, codes=codes.view(self.codes.shape).to(self.codes.dtype))

    def cleared(self, mask: Tensor) -> "VectorCoded":
        """Refused: a code stands for all inputs of its group, and none of them can be removed."""
        raise _masked(self.group)

    def stored(self) -> dict[str, Tensor]:
        """The codes of a row in `bits` bits each, the vectors and the scales."""
        return {
            "weight_packed": pack_codes(self.codes.flatten(1), self.bits),
            "weight_codebooks": self.codebooks.contiguous(),
            "weight_scale": self.scale.contiguous(),
        }

    def stored_kept(self, mask: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Refused: see `cleared`."""
        raise _masked(self.group)

    def dequantize(self) -> Tensor:
        """The weight it stands for.  -> [out, in], float32."""
        return decoded(self.codes, self.codebooks.float(), self.scale.float())


def decoded(codes: Tensor, tables: Tensor, scale: Tensor) -> Tensor:
    """What codes stand for, differentiable in tables and scales.

    codes: integers [out, in // g, K]  tables: [K, 2^bits, g]  scale: [out, 1]  ->  [out, in]
    """
    codes = codes.int() if codes.dtype == torch.uint8 else codes
    total = embedding(codes[:, :, 0], tables[0])
    for k in range(1, len(tables)):
        total = total + embedding(codes[:, :, k], tables[k])
    return total.flatten(1) * scale


def nearest_vectors(x: Tensor, table: Tensor) -> Tensor:
    """The vector nearest to each of x, of two equally near the first.

    x: [n, g]  table: [count, g], of the same float type  ->  int64 [n]
    """
    half = table.square().sum(1) / 2
    rows = max(1, _AT_ONCE // len(table))
    found = [torch.addmm(half, part, table.T, alpha=-1).argmin(1) for part in torch.split(x, rows)]
    return torch.cat(found)


def code_dtype(bits: int) -> torch.dtype:
    """In what codes are kept in memory."""
    return torch.uint8 if bits <= 8 else torch.int32


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes in bytes; those of more than 8 bits as a plane of low bytes and one of high bits.

    codes: [out, n], below 2^bits  ->  uint8 [out, row bytes]
    """
    if bits <= 8:
        return pack_bits(codes.to(torch.uint8), bits)
    low, high = (codes & 255).to(torch.uint8), (codes >> 8).to(torch.uint8)
    return torch.cat([low, pack_bits(high, bits - 8)], dim=1)


def unpack_codes(packed: Tensor, bits: int, n: int) -> Tensor:
    """Inverse of `pack_codes`.  ->  [out, n], uint8 for at most 8 bits, else int32"""
    if bits <= 8:
        return unpack_bits(packed, bits, n)
    if packed.shape[1] != n + packed_width(n, bits - 8):
        raise ConfigError(f"codes: {packed.shape[1]} bytes hold no {n} codes of {bits} bits.")
    high = unpack_bits(packed[:, n:], bits - 8, n)
    return packed[:, :n].int() | high.int() << 8


def _masked(group: int) -> ConfigError:
    return ConfigError(
        f"vector codebooks: a code stands for {group} inputs, so a mask cannot remove some of "
        f"them. Leave out the step that prunes."
    )
