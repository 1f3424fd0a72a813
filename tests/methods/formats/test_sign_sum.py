"""methods/formats/sign_sum.py."""

import json
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from tests.methods.samples import random_mask, random_sign_sum
from trinity.lowering.rows.row_storage import layout_of
from trinity.methods.errors import ConfigError, RecordError, UnsupportedError
from trinity.methods.formats import (
    NM,
    Sparse,
    Unstructured,
    WeightFormat,
    bits_per_weight,
    format_of,
    pack,
    unpack,
)


def test_an_entry_is_the_sum_of_signed_products() -> None:
    weight = random_sign_sum(5, 7, 3, 2, torch.float16)
    found = weight.dequantize()
    for i, j in product(range(5), range(7)):
        expected = 0.0
        for k in range(3):
            magnitude = sum(float(weight.U[k, i, r]) * float(weight.V[k, r, j]) for r in range(2))
            expected += -magnitude if weight.signs[k, i, j] else magnitude
        assert float(found[i, j]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_rounding_tries_every_choice_of_signs() -> None:
    weight, W = random_sign_sum(4, 6, 3, 2, torch.float32), torch.randn(4, 6)
    found = (weight.rounded(W).dequantize() - W).abs()
    for signs in product((0, 1), repeat=3):
        every = torch.tensor(signs, dtype=torch.uint8)[:, None, None].expand(3, 4, 6).contiguous()
        assert bool((found <= (replace(weight, signs=every).dequantize() - W).abs() + 1e-6).all())


@pytest.mark.parametrize("pattern", [None, NM(2, 4), Unstructured(0.5)])
def test_it_survives_a_file(pattern: NM | Unstructured | None) -> None:
    plain = random_sign_sum(6, 20, 2, 3, torch.bfloat16)
    weight = Sparse(plain, random_mask(6, 20, pattern), pattern) if pattern else plain
    layout = WeightFormat.from_json(json.loads(json.dumps(format_of(weight).to_json())))
    assert layout == format_of(weight)
    assert torch.equal(unpack(layout, load(save(pack(weight)))).dequantize(), weight.dequantize())


def test_a_term_takes_a_bit_a_weight_and_its_factors() -> None:
    weight = random_sign_sum(64, 128, 3, 16, torch.float16)
    assert bits_per_weight(weight) == 3 * (1 + 16 * 16 * (64 + 128) / (64 * 128))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"signs": torch.full((2, 4, 6), 2, dtype=torch.uint8)}, "2 is neither 0 nor 1"),
        ({"signs": torch.zeros(2, 4, 6)}, "expected uint8"),
        ({"U": torch.zeros(2, 5, 3)}, r"U: \[2, 5, 3\] is not \[2, 4, 3\]"),
        ({"V": torch.zeros(1, 3, 6)}, "V"),
        ({"V": torch.zeros(2, 3, 6).half()}, "not that of U"),
        ({"U": torch.full((2, 4, 3), float("nan"))}, "not finite"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        replace(random_sign_sum(4, 6, 2, 3, torch.float32), **changes)


@pytest.mark.parametrize("change", [{"terms": 0}, {"dtype": "int8"}, {"ranks": 2}])
def test_a_damaged_description_is_refused(change: dict[str, Any]) -> None:
    data = format_of(random_sign_sum(4, 6, 2, 3, torch.float32)).to_json()
    with pytest.raises(RecordError):
        WeightFormat.from_json({**data, "signed_terms": {**data["signed_terms"], **change}})


def test_modules_refuse_it_by_name() -> None:
    with pytest.raises(UnsupportedError, match="'signed_terms'"):
        layout_of(format_of(random_sign_sum(4, 6, 2, 3, torch.float32)))
