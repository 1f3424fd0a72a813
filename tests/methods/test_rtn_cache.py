"""methods/rtn_cache.py."""

import pytest
import torch

from tests.oracles import caches as oracle
from trinity.methods.rtn_cache import RTN_CACHE, RtnCacheConfig


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_head_and_position_is_rounded_by_itself(bits: int) -> None:
    keys, values = torch.randn(2, 2, 3, 5, 32)
    before = keys.clone(), values.clone()
    config = RtnCacheConfig.model_validate({"bits": bits})
    for found, x in zip(RTN_CACHE.rounded_cache(keys, values, config), before, strict=True):
        torch.testing.assert_close(found.double(), oracle.rounded(x, bits), rtol=1e-6, atol=1e-7)
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


def test_more_bits_are_nearer() -> None:
    X = torch.randn(1, 2, 50, 64)
    errors = []
    for bits in (2, 3, 4, 8):
        config = RtnCacheConfig.model_validate({"bits": bits})
        errors.append(float((RTN_CACHE.rounded_cache(X, X, config)[0] - X).norm()))
    assert errors == sorted(errors, reverse=True)
