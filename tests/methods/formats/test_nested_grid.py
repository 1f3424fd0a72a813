"""methods/formats/nested_grid.py."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from tests.methods.samples import random_mask, random_nested
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


def test_a_code_decodes_by_both_levels() -> None:
    weight = random_nested(20, 12, 3, 3)
    found = weight.dequantize()
    for i in range(20):
        for j in range(12):
            second, group = i // 16, j // 4
            scale = float(weight.scale_low[second, group]) + float(
                weight.scale_step[second, group]
            ) * int(weight.scale_codes[i, group])
            zero = float(weight.zero_low[second, group]) + float(
                weight.zero_step[second, group]
            ) * int(weight.zero_codes[i, group])
            expected = scale * (int(weight.codes[i, j]) - zero)
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_rounding_tries_every_code() -> None:
    weight, W = random_nested(4, 12, 3, 3, rows=2), torch.randn(4, 12)
    found = (weight.rounded(W).dequantize() - W).abs()
    for code in range(8):
        other = replace(weight, codes=torch.full_like(weight.codes, code)).dequantize()
        assert bool((found <= (other - W).abs() + 1e-6).all())


@pytest.mark.parametrize(("bits", "pattern"), [(2, None), (3, NM(2, 4)), (4, Unstructured(0.5))])
def test_it_survives_a_file(bits: int, pattern: NM | Unstructured | None) -> None:
    plain = random_nested(20, 16, bits, 4)
    weight = Sparse(plain, random_mask(20, 16, pattern), pattern) if pattern else plain
    layout = WeightFormat.from_json(json.loads(json.dumps(format_of(weight).to_json())))
    assert layout == format_of(weight)
    again = unpack(layout, load(save(pack(weight))))
    assert torch.equal(again.dequantize(), weight.dequantize())


def test_bits_are_counted_from_the_bytes() -> None:
    # Codes, 3 bits for a scale and a zero point of 16 inputs, and 4 float16 for 16 x 16 weights.
    weight = random_nested(32, 128, 3, 8)
    assert bits_per_weight(weight) == 3 + 6 / 16 + 64 / 256


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"codes": torch.full((20, 12), 8, dtype=torch.uint8)}, "8 is no code of 3 bits"),
        ({"zero_codes": torch.zeros(20, 2, dtype=torch.uint8)}, "zero_codes"),
        ({"scale_step": torch.zeros(1, 3).half()}, "scale_step"),
        ({"zero_low": torch.full((2, 3), float("nan")).half()}, "not finite"),
        ({"zero_low": torch.zeros(2, 3)}, "float type of the others"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        replace(random_nested(20, 12, 3, 3), **changes)


def test_a_damaged_description_is_refused() -> None:
    data = format_of(random_nested(20, 12, 3, 3)).to_json()
    with pytest.raises(RecordError):
        WeightFormat.from_json({**data, "nested_grid": {**data["nested_grid"], "bits": 7}})


def test_modules_hold_it_and_refuse_it_under_a_mask_by_name() -> None:
    weight = random_nested(20, 12, 3, 3)
    layout = layout_of(format_of(weight))
    assert torch.equal(layout.unpack(layout.pack(weight)).dequantize(), weight.dequantize())
    masked = Sparse(weight, random_mask(20, 12, NM(2, 4)), NM(2, 4))
    with pytest.raises(UnsupportedError, match="two levels of scales where none is masked"):
        layout_of(format_of(masked))
