"""methods/formats/vector_codebook.py."""

import json
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from tests.methods.samples import random_vectors
from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats import (
    NM,
    Adapted,
    Sparse,
    VectorCoded,
    WeightFormat,
    bits_per_weight,
    format_of,
    pack,
    unpack,
)
from trinity.methods.formats.vector_codebook import BITS, pack_codes, unpack_codes

OUT, IN = 5, 24


@pytest.mark.parametrize(("bits", "group", "books"), [(4, 8, 1), (8, 4, 2), (8, 3, 3), (16, 8, 1)])
def test_an_entry_is_the_scaled_sum_of_those_that_its_codes_name(
    bits: int, group: int, books: int
) -> None:
    weight = random_vectors(OUT, IN, bits, group, books)
    found = weight.dequantize()
    for i in range(OUT):
        for j in range(IN):
            codes = weight.codes[i, j // group].tolist()
            vectors = [weight.codebooks[k, code] for k, code in enumerate(codes)]
            whole = sum(float(vector[j % group]) for vector in vectors) * float(weight.scale[i])
            assert float(found[i, j]) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_codes_of_every_width_survive_packing(bits: int) -> None:
    codes = random_vectors(OUT, 21, bits, 3, 1).codes.flatten(1)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape[1] == -(-7 * bits // 8)
    again = unpack_codes(packed, bits, 7)
    assert again.dtype == codes.dtype
    assert torch.equal(again, codes)


def test_wide_codes_are_a_plane_of_low_bytes_and_one_of_high_bits() -> None:
    codes = torch.tensor([[0xABC, 0x123]], dtype=torch.int32)
    assert pack_codes(codes, 12).tolist() == [[0xBC, 0x23, 0x1A]]
    assert pack_codes(codes, 16).tolist() == [[0xBC, 0x23, 0x0A, 0x01]]


@pytest.mark.parametrize(("bits", "books"), [(4, 3), (8, 2), (12, 2), (16, 1)])
def test_it_survives_a_file(bits: int, books: int) -> None:
    weight = random_vectors(OUT, IN, bits, 8, books, torch.bfloat16)
    layout = WeightFormat.from_json(json.loads(json.dumps(format_of(weight).to_json())))
    assert layout == format_of(weight)
    again = unpack(layout, load(save(pack(weight))))
    assert isinstance(again, VectorCoded)
    assert torch.equal(again.codes, weight.codes)
    assert torch.equal(again.codebooks, weight.codebooks)
    assert torch.equal(again.scale, weight.scale)


def test_bits_are_counted_from_the_bytes() -> None:
    """K B / g for codes, K 2^B g 16 / (out in) for tables, 16 / in for scales."""
    for bits, books in ((8, 2), (12, 1), (16, 1)):
        weight = random_vectors(128, 256, bits, 8, books)
        tables = books * 2**bits * 8 * 16 / (128 * 256)
        assert bits_per_weight(weight) == books * bits / 8 + tables + 16 / 256


def test_rounding_with_one_table_tries_every_vector() -> None:
    weight, W = random_vectors(OUT, IN, 4, 8, 1, torch.float32), torch.randn(OUT, IN)
    found = weight.rounded(W).dequantize()
    for i in range(OUT):
        for group in range(IN // 8):
            inputs = slice(8 * group, 8 * group + 8)
            tried = [v * weight.scale[i] - W[i, inputs] for v in weight.codebooks[0]]
            least = min(float(off.double().square().sum()) for off in tried)
            off = (found - W)[i, inputs].double().square().sum()
            assert float(off) == pytest.approx(least, rel=1e-5)


def test_after_rounding_no_other_code_alone_is_nearer() -> None:
    weight, W = random_vectors(3, 8, 4, 4, 2, torch.float32), torch.randn(3, 8)
    rounded = weight.rounded(W)

    def off(codes: torch.Tensor) -> float:
        made = replace(weight, codes=codes).dequantize()
        return float((made - W).double().square().sum())

    least = off(rounded.codes)
    assert least <= off(weight.codes)
    for i, group, k, code in product(range(3), range(2), range(2), range(16)):
        codes = rounded.codes.clone()
        codes[i, group, k] = code
        assert off(codes) >= least - 1e-5


def test_a_mask_is_refused() -> None:
    weight = random_vectors(4, 16, 4, 8, 1)
    mask = (torch.arange(16) % 4 < 2).repeat(4, 1)
    with pytest.raises(ConfigError, match="a code stands for 8 inputs, so a mask cannot remove"):
        Sparse(weight, mask, NM(2, 4))


def test_an_adapter_stands_beside_it() -> None:
    weight = Adapted(random_vectors(4, 16, 4, 8, 1), torch.ones(4, 1), torch.ones(1, 16))
    again = unpack(format_of(weight), pack(weight))
    assert torch.equal(again.dequantize(), weight.base.dequantize() + 1)
    assert format_of(weight).label == "1x4-bit vectors of 8 + rank 1"


def test_what_does_not_fit_is_refused() -> None:
    weight = random_vectors(4, 16, 4, 8, 2)
    with pytest.raises(ConfigError, match=r"codes: 16\.\.16 is outside 0\.\.15"):
        replace(weight, codes=torch.full_like(weight.codes, 16))
    with pytest.raises(ConfigError, match=r"codes: expected torch.uint8 \[out, in // 8, 2\]"):
        replace(weight, codes=weight.codes.int())
    with pytest.raises(ConfigError, match=r"codes: expected .*, 2\], found .*\[4, 2, 1\]"):
        replace(weight, codes=weight.codes[:, :, :1])
    with pytest.raises(ConfigError, match=r"codebooks: expected floats .* found .*\[2, 15, 8\]"):
        replace(weight, codebooks=weight.codebooks[:, :15])
    with pytest.raises(ConfigError, match="codebooks: holds entries that are not finite"):
        replace(weight, codebooks=weight.codebooks / 0)
    with pytest.raises(ConfigError, match=r"scale: expected floats \[4, 1\]"):
        replace(weight, scale=weight.scale[:1])
    with pytest.raises(ConfigError, match="scale: holds entries that are not positive"):
        replace(weight, scale=-weight.scale)


@pytest.mark.parametrize(
    ("key", "value"),
    [("bits", 5), ("books", 0), ("group", "8"), ("dtype", "int8"), ("scale_dtype", 1), ("more", 1)],
)
def test_json_that_is_none_is_refused(key: str, value: Any) -> None:
    data = format_of(random_vectors(4, 16, 4, 8, 2)).to_json()
    changed = {**data, "vector_codebook": {**data["vector_codebook"], key: value}}
    with pytest.raises(RecordError):
        WeightFormat.from_json(changed)


def test_bytes_that_are_too_few_are_refused() -> None:
    weight = random_vectors(4, 16, 12, 8, 2)
    tensors = pack(weight)
    with pytest.raises(RecordError, match="5 bytes hold no 4 codes of 12 bits"):
        unpack(format_of(weight), {**tensors, "weight_packed": tensors["weight_packed"][:, :5]})
