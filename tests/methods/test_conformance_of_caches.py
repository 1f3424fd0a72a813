"""methods/conformance.py on methods that keep keys and values."""

import pytest
import torch
from torch import Tensor

from trinity.methods.conformance import check
from trinity.methods.contract import MethodConfig
from trinity.methods.formats import CacheFormat
from trinity.methods.gear import GEAR
from trinity.methods.rtn_cache import RTN_CACHE

Pair = tuple[Tensor, Tensor]


class Good:
    name, paper, config = "good", "none", MethodConfig

    def cache_problem(self, width: int, config: MethodConfig) -> str | None:
        return None

    def cache_format(self, config: MethodConfig) -> CacheFormat:
        return CacheFormat(2)

    def rounded_cache(self, keys: Tensor, values: Tensor, config: MethodConfig) -> Pair:
        return keys.sign(), values.sign()


class Formless(Good):
    def cache_format(self, config: MethodConfig) -> CacheFormat:
        return "int2"  # type: ignore[return-value]


class Swapping(Good):
    def rounded_cache(self, keys: Tensor, values: Tensor, config: MethodConfig) -> Pair:
        return keys.mT, values.mT


class Overflowing(Good):
    def rounded_cache(self, keys: Tensor, values: Tensor, config: MethodConfig) -> Pair:
        return keys / 0, values


class Changing(Good):
    def rounded_cache(self, keys: Tensor, values: Tensor, config: MethodConfig) -> Pair:
        return keys.sign_(), values


class Drawn(Good):
    def rounded_cache(self, keys: Tensor, values: Tensor, config: MethodConfig) -> Pair:
        return keys + torch.rand_like(keys), values


class OfTheBatch(Good):
    def rounded_cache(self, keys: Tensor, values: Tensor, config: MethodConfig) -> Pair:
        return keys - keys.mean(), values


class OfOthers(Good):
    def rounded_cache(self, keys: Tensor, values: Tensor, config: MethodConfig) -> Pair:
        return keys - keys.mean((1, 2, 3), keepdim=True), values


class Failing(Good):
    def rounded_cache(self, keys: Tensor, values: Tensor, config: MethodConfig) -> Pair:
        raise ZeroDivisionError("oops")


class Refusing(Good):
    def cache_problem(self, width: int, config: MethodConfig) -> str | None:
        return "never"


def test_good_ones_conform() -> None:
    assert check(Good()) == []
    assert check(RTN_CACHE, options={"bits": 8}) == []
    assert check(GEAR, options={"buffer": 16, "outliers": 0.1, "rank": 2}) == []


@pytest.mark.parametrize(
    ("method", "violation"),
    [
        (Formless(), "cache_format: gave 'int2', expected a CacheFormat"),
        (Swapping(), "gave no keys and values of the shapes that it was given, finite"),
        (Overflowing(), "gave no keys and values of the shapes that it was given, finite"),
        (Changing(), "changed the keys or values that it was given"),
        (Drawn(), "take a seed in the config instead of the global generator"),
        (OfTheBatch(), "rounds a sequence by what others beside it hold"),
        (OfOthers(), "its format rounds positions alone, and it does not"),
        (Failing(), "raised ZeroDivisionError: oops"),
        (Refusing(), "nothing was tried: every width is refused (never)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Good) else "",
)
def test_what_breaks_the_contract_is_found(method: Good, violation: str) -> None:
    assert violation in "\n".join(check(method))
