"""Sums of sign matrices times low-rank magnitudes (BitStack, Wang et al., arXiv:2410.23918).

    W = sum over k of S_k * (U_k V_k),   S_k of +1 and -1, the product * entry by entry

A bit an entry and term, and the factors.  Terms are in order: the first ones alone are a coarser
weight of the same kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from trinity.methods.errors import ConfigError
from trinity.methods.formats.bits import pack_bits, unpack_bits
from trinity.methods.formats.dense import FLOAT_DTYPES
from trinity.methods.formats.kept import kept_of


@dataclass(frozen=True)
class SignedTerms:
    """Such a sum without its numbers.

    terms: how many   rank: of each one's magnitude   dtype: of the factors
    """

    kind: ClassVar[str] = "signed_terms"
    terms: int
    rank: int
    dtype: str

    @property
    def numbers(self) -> "type[SignSum]":
        """Sums of signs times low-rank magnitudes."""
        return SignSum

    def words(self, d_in: int) -> list[str]:
        """How many terms, and of which rank."""
        return [f"{self.terms} signs times rank {self.rank}"]

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return {"terms": self.terms, "rank": self.rank, "dtype": self.dtype}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "SignedTerms":
        """Read what `to_json` wrote; ConfigError, KeyError or TypeError if it is not that."""
        made = SignedTerms(**data)
        if made.terms < 1 or made.rank < 1:
            raise ConfigError(f"signed terms: {made.terms} of rank {made.rank} are none.")
        if made.dtype not in {str(known).removeprefix("torch.") for known in FLOAT_DTYPES}:
            raise ConfigError(f"dtype: {made.dtype!r} is no type of factors.")
        return made

    def restored(self, shape: tuple[int, int], tensors: Mapping[str, Tensor]) -> "SignSum":
        """The weight `stored` gave."""
        signs = unpack_bits(tensors["weight_signs"], 1, shape[1])
        return SignSum(signs, tensors["weight_U"], tensors["weight_V"])

    def restored_kept(
        self, mask: Tensor, kept: tuple[int, ...], tensors: Mapping[str, Tensor]
    ) -> "SignSum":
        """The weight `stored_kept` gave; elsewhere every sign is +1.  mask: bool [out, in]"""
        packed = tensors["weight_signs"]
        signs = torch.zeros(self.terms, *mask.shape, dtype=torch.uint8, device=packed.device)
        signs[:, mask] = unpack_bits(packed, 1, kept[-1]).flatten(1)
        return SignSum(signs, tensors["weight_U"], tensors["weight_V"])


@dataclass(frozen=True, eq=False)
class SignSum:
    """`sum_k S_k * (U_k V_k)`.

    signs: uint8 [terms, out, in], 1 where S is -1, else 0
    U, V: floats of one type, finite, [terms, out, rank] and [terms, rank, in]
    """

    signs: Tensor
    U: Tensor
    V: Tensor

    def __post_init__(self) -> None:
        """Refuse what does not fit, signs that are none, and what is not finite."""
        signs, U, V = self.signs, self.U, self.V
        if signs.ndim != 3 or 0 in signs.shape or signs.dtype != torch.uint8:
            msg = f"signs: expected uint8 [terms, out, in], found {signs.dtype} {[*signs.shape]}."
            raise ConfigError(msg)
        if int(signs.max()) > 1:
            raise ConfigError(f"signs: {int(signs.max())} is neither 0 nor 1.")
        terms, out, d_in = signs.shape
        for name, found, shape in (
            ("U", U, (terms, out, U.shape[-1])),
            ("V", V, (terms, U.shape[-1], d_in)),
        ):
            if tuple(found.shape) != shape or 0 in found.shape:
                raise ConfigError(f"{name}: {[*found.shape]} is not {[*shape]}, rank at least 1.")
            if found.dtype != U.dtype or found.dtype not in FLOAT_DTYPES:
                raise ConfigError(f"{name}: {found.dtype} is no float type, or not that of U.")
            if not bool(found.isfinite().all()):
                raise ConfigError(f"{name}: holds entries that are not finite in {found.dtype}.")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.signs.shape[1], self.signs.shape[2])

    @property
    def values_format(self) -> SignedTerms:
        """The sum without its numbers."""
        dtype = str(self.U.dtype).removeprefix("torch.")
        return SignedTerms(self.signs.shape[0], self.U.shape[2], dtype)

    def magnitudes(self) -> Tensor:
        """U_k V_k of every term; entries below zero turn their sign around.

        -> [terms, out, in], float32
        """
        return self.U.float() @ self.V.float()

    def dequantize(self) -> Tensor:
        """The weight it stands for.  -> [out, in], float32."""
        found = torch.zeros(self.shape, device=self.signs.device)
        for signs, U, V in zip(self.signs, self.U.float(), self.V.float(), strict=True):
            found += _signed(U @ V, signs)
        return found

    def rounded(self, W: Tensor) -> "SignSum":
        """The nearest signs under the same factors: all 2^terms of each entry are tried.

        W: [out, in]
        """
        terms = self.signs.shape[0]
        best = torch.zeros_like(self.signs)
        least = torch.full(self.shape, torch.inf, device=W.device)
        magnitudes = self.magnitudes()
        for number in range(2**terms):
            found = torch.zeros(self.shape, device=W.device)
            signs = [number >> k & 1 for k in range(terms)]
            for magnitude, negative in zip(magnitudes, signs, strict=True):
                found += -magnitude if negative else magnitude
            misses = (found - W.float()).abs()
            better = misses < least
            least = torch.where(better, misses, least)
            chosen = torch.tensor(signs, dtype=torch.uint8, device=W.device)
            best = torch.where(better, chosen[:, None, None], best)
        return replace(self, signs=best)

    def cleared(self, mask: Tensor) -> "SignSum":
        """Signs of +1 where the mask is False.  mask: bool [out, in]"""
        return replace(self, signs=self.signs.masked_fill(~mask, 0))

    def stored(self) -> dict[str, Tensor]:
        """A bit for each sign, and the factors."""
        return self._stored(self.signs)

    def stored_kept(self, mask: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The same of the kept signs, each term's as `shape`."""
        kept = torch.stack([kept_of(signs, mask).view(shape) for signs in self.signs])
        return self._stored(kept)

    def _stored(self, signs: Tensor) -> dict[str, Tensor]:
        factors = {"weight_U": self.U.contiguous(), "weight_V": self.V.contiguous()}
        return {"weight_signs": pack_bits(signs, 1), **factors}


def _signed(magnitude: Tensor, signs: Tensor) -> Tensor:
    """Minus where a sign is 1."""
    return torch.where(signs.bool(), -magnitude, magnitude)
