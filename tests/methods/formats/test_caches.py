"""methods/formats/caches.py: codes against a plain loop, bytes against tensors that are there."""

import pytest
import torch

from tests.oracles import caches as oracle
from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats import CacheFormat, cache_codes

EVERY = [CacheFormat(8), CacheFormat(4), CacheFormat(2, 64), CacheFormat(3, 16, 0.02, 4)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_those_of_a_plain_loop(bits: int) -> None:
    x = torch.randn(5, 3, 64) * torch.tensor([0.01, 1, 300])[:, None] + 2
    found = cache_codes(x, bits)
    for row, codes, scale, minimum in zip(
        x.view(-1, 64).tolist(),
        found.codes.view(-1, 64).tolist(),
        found.scale.view(-1).tolist(),
        found.minimum.view(-1).tolist(),
        strict=True,
    ):
        assert (codes, scale, minimum) == oracle.coded(row, bits)
    torch.testing.assert_close(
        found.dequantize().double(), oracle.rounded(x, bits), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_no_number_is_further_off_than_half_a_step_and_what_float16_rounds(bits: int) -> None:
    x = torch.randn(100, 64).double()
    found = cache_codes(x.float(), bits)
    step = (x.amax(-1) - x.amin(-1)) / (2**bits - 1)
    off = (found.dequantize().double() - x).abs().amax(-1)
    assert bool((off <= step / 2 + 2**-10 * x.abs().amax(-1)).all())


def test_both_ends_have_a_code_and_all_levels_are_reached() -> None:
    """2^b - 1 steps, not b^2 - 1: at 3 bits 7 and not 8, at 8 bits 255 and not 63."""
    for bits in (2, 3, 4, 8):
        found = cache_codes(torch.linspace(-1, 1, 2**bits)[None], bits)
        assert found.codes[0].tolist() == list(range(2**bits))


def test_equal_numbers_keep_theirs() -> None:
    found = cache_codes(torch.full((1, 8), 2.5), 4)
    assert found.codes.eq(0).all()
    assert found.dequantize().eq(2.5).all()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e6, 1e8])
def test_what_float16_cannot_hold_is_no_number_and_never_a_wrong_one(number: float) -> None:
    x = torch.randn(1, 8)
    x[0, 3] = number
    assert not cache_codes(x, 8).dequantize().isfinite().all()


def test_bytes_are_those_of_the_tensors_of_a_cache() -> None:
    x = torch.randn(2, 3, 10, 64)  # keys and values of 3 heads at 10 positions
    for bits in (4, 8):
        stored = sum(oracle.planes(part, bits).numel() for part in x)
        assert CacheFormat(bits).bytes_at(10, 3, 64, 4) == stored


def test_bytes_of_positions_that_wait_are_those_of_floats() -> None:
    kept = CacheFormat(2, 64)
    whole = kept.bytes_at(64, 3, 64, 2)
    assert kept.bytes_at(64 + 5, 3, 64, 2) == whole + 2 * 5 * 3 * 64 * 2
    assert kept.bytes_at(128, 3, 64, 2) == 2 * whole
    codes, keys, values = 2 * 64 * 192 * 2 // 8, 192 * 4, 64 * 3 * 4
    assert whole == codes + keys + values


def test_outliers_and_a_rank_are_counted() -> None:
    plain, both = CacheFormat(2, 64), CacheFormat(2, 64, 0.02, 4)
    factors = 2 * 3 * 4 * (64 + 64) * 2  # of keys and values, 3 heads, rank 4, float16
    outliers = (192 * 2 * 1 + 64 * 2 * 2) * 4  # 1 of 64 at each end of a channel, 2 of 192
    assert both.bytes_at(64, 3, 64, 4) == plain.bytes_at(64, 3, 64, 4) + factors + outliers


@pytest.mark.parametrize("kept", EVERY, ids=lambda kept: kept.label)
def test_a_format_survives_json(kept: CacheFormat) -> None:
    assert CacheFormat.from_json(kept.to_json()) == kept
    with pytest.raises(RecordError, match="cannot be read"):
        CacheFormat.from_json({**kept.to_json(), "bits": 9})
    with pytest.raises(RecordError, match="cannot be read"):
        CacheFormat.from_json({**kept.to_json(), "more": 1})


@pytest.mark.parametrize(
    "sizes",
    [{"bits": 1}, {"bits": 4, "together": 0}, {"bits": 4, "rank": 2}, {"bits": 4, "outliers": 0.1}],
)
def test_what_makes_no_cache_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"^cache: "):
        CacheFormat(**sizes)
