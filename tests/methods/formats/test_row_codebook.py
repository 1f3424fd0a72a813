"""methods/formats/row_codebook.py."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from tests.methods.samples import random_mask, random_row_coded
from tests.oracles.quantization import pack_row
from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats import (
    NM,
    RowCoded,
    Sparse,
    Unstructured,
    WeightFormat,
    bits_per_weight,
    format_of,
    pack,
    unpack,
)


@pytest.mark.parametrize("tables", [1, 5])
def test_a_code_decodes_to_the_level_of_its_row(tables: int) -> None:
    weight = random_row_coded(5, 12, 3, torch.float16, tables)
    found = weight.dequantize()
    for i in range(5):
        for j in range(12):
            assert found[i, j] == weight.levels[i if tables > 1 else 0, int(weight.codes[i, j])]


def test_rounding_tries_every_level() -> None:
    weight, W = random_row_coded(4, 20, 4, torch.float32, 4), torch.randn(4, 20)
    found = weight.rounded(W).dequantize()
    for i in range(4):
        for j in range(20):
            least = min(abs(float(W[i, j] - level)) for level in weight.levels[i])
            assert abs(float(W[i, j] - found[i, j])) == pytest.approx(least, abs=1e-7)


def test_bits_are_counted_from_the_bytes() -> None:
    assert bits_per_weight(random_row_coded(64, 128, 4, torch.float16, 64)) == 4 + 16 * 16 / 128
    assert bits_per_weight(random_row_coded(64, 128, 3, torch.float16, 64)) == 3 + 8 * 16 / 128
    one = random_row_coded(64, 128, 4, torch.float32, 1)
    assert bits_per_weight(one) == 4 + 16 * 32 / (64 * 128)


@pytest.mark.parametrize(("bits", "pattern"), [(2, None), (3, NM(2, 4)), (4, Unstructured(0.5))])
def test_it_survives_a_file(bits: int, pattern: NM | Unstructured | None) -> None:
    plain = random_row_coded(3, 16, bits, torch.bfloat16, 3)
    weight = Sparse(plain, random_mask(3, 16, pattern), pattern) if pattern else plain
    layout = WeightFormat.from_json(json.loads(json.dumps(format_of(weight).to_json())))
    assert layout == format_of(weight)
    stored = load(save(pack(weight)))
    again = unpack(layout, stored)
    assert torch.equal(again.dequantize(), weight.dequantize())
    if pattern is None:
        rows = plain.codes.tolist()
        assert stored["weight_packed"].tolist() == [pack_row(row, bits) for row in rows]


def test_the_label_says_how_many_levels_and_whose() -> None:
    labels = [
        format_of(random_row_coded(4, 8, 3, torch.float16, tables)).label for tables in (1, 4)
    ]
    assert labels == ["8 levels tensor", "8 levels channel"]


def test_codes_and_levels_that_do_not_fit_are_refused() -> None:
    weight = random_row_coded(4, 8, 3, torch.float16, 4)
    with pytest.raises(ConfigError, match="codes: 8 is no code of 8 levels"):
        replace(weight, codes=weight.codes + 8 - weight.codes % 8)
    with pytest.raises(ConfigError, match=r"levels: .*\[3, 8\] does not fit codes \[4, 8\]"):
        replace(weight, levels=weight.levels[:3])
    with pytest.raises(ConfigError, match=r"levels: .*\[4, 7\] does not fit"):
        RowCoded(torch.zeros(4, 8, dtype=torch.uint8), weight.levels[:, :7])
    with pytest.raises(ConfigError, match="levels: holds entries that are not finite"):
        replace(weight, levels=weight.levels / 0)
    with pytest.raises(ConfigError, match=r"codes: expected uint8 \[out, in\]"):
        replace(weight, codes=weight.codes.int())


@pytest.mark.parametrize(("key", "value"), [("bits", 5), ("dtype", "int8"), ("tables", 3)])
def test_json_that_is_none_is_refused(key: str, value: object) -> None:
    weight = random_row_coded(4, 8, 3, torch.float16, 4)
    data = format_of(weight).to_json()
    changed = {**data, "row_codebook": {**data["row_codebook"], key: value}}
    with pytest.raises(RecordError):
        unpack(WeightFormat.from_json(changed), pack(weight))
