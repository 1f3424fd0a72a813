"""methods/formats/codebook.py and methods/formats/scales.py."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from tests.methods.samples import random_coded, random_mask
from tests.oracles.quantization import pack_row
from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats import (
    NM,
    Adapted,
    Coded,
    Sparse,
    Transposed,
    WeightFormat,
    bits_per_weight,
    format_of,
    pack,
    unpack,
)
from trinity.methods.formats.level_tables import TABLES

E8M0, E4M3 = torch.float8_e8m0fnu, torch.float8_e4m3fn


def test_a_code_decodes_to_its_level_times_its_scales() -> None:
    weight = random_coded(5, 24, "e2m1", 3, E4M3, outer=True)
    assert weight.outer_scale is not None
    found = weight.dequantize()
    for i in range(5):
        for j in range(24):
            scale = float(weight.scale[i, j // 8].float()) * float(weight.outer_scale)
            level = TABLES["e2m1"][int(weight.codes[i, j])]
            assert float(found[i, j]) == pytest.approx(scale * level, rel=1e-6)


def test_bits_are_counted_from_the_bytes() -> None:
    assert bits_per_weight(random_coded(64, 128, "nf4", 2, torch.float16)) == 4 + 16 / 64
    assert bits_per_weight(random_coded(64, 128, "e2m1", 4, E8M0)) == 4 + 8 / 32
    two = random_coded(64, 128, "e2m1", 8, E4M3, outer=True)
    assert bits_per_weight(two) == 4 + 8 / 16 + 32 / (64 * 128)
    sparse = Sparse(two, random_mask(64, 128, NM(2, 4)), NM(2, 4))
    assert bits_per_weight(sparse) == (4 + 2) / 2 + 8 / 16 + 32 / (64 * 128)
    assert bits_per_weight(random_coded(64, 128, "e4m3", 1, torch.float32)) == 8 + 32 / 128


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, E8M0, E4M3])
def test_it_survives_a_file(dtype: torch.dtype) -> None:
    weight = random_coded(3, 10, "nf4", 2, dtype, outer=dtype == E4M3)
    layout = WeightFormat.from_json(json.loads(json.dumps(format_of(weight).to_json())))
    assert layout == format_of(weight)
    stored = load(save(pack(weight)))
    assert stored["weight_packed"].tolist() == [pack_row(row, 4) for row in weight.codes.tolist()]
    again = unpack(layout, stored)
    assert isinstance(again, Coded)
    assert torch.equal(again.codes, weight.codes)
    assert again.scale.dtype == dtype
    assert torch.equal(again.dequantize(), weight.dequantize())


def test_the_label_says_the_table_and_how_scales_are_stored() -> None:
    labels = [
        format_of(random_coded(4, 64, "nf4", 1, torch.float16)).label,
        format_of(random_coded(4, 64, "e2m1", 2, E8M0)).label,
        format_of(random_coded(4, 64, "e2m1", 4, E4M3, outer=True)).label,
    ]
    assert labels == [
        "nf4 channel",
        "e2m1 group 32 e8m0 scales",
        "e2m1 group 16 e4m3 scales over float32",
    ]


def test_codes_and_scales_that_are_none_are_refused() -> None:
    weight = random_coded(4, 64, "e4m3", 2, torch.float32)
    nan, bytes_of = torch.full((4, 64), 127, dtype=torch.uint8), torch.uint8
    with pytest.raises(ConfigError, match="codes: 127 is no code of the table 'e4m3'"):
        replace(weight, codes=nan)
    with pytest.raises(ConfigError, match="codes: 16 is no code of the table 'nf4'"):
        replace(weight, codes=torch.full((4, 64), 16, dtype=bytes_of), table="nf4")
    with pytest.raises(ConfigError, match=r"codes: expected uint8 \[out, in\], found torch.int8"):
        replace(weight, codes=weight.codes.to(torch.int8))
    with pytest.raises(ConfigError, match=r"scale: \[4, 3\] does not fit codes \[4, 64\]"):
        replace(weight, scale=torch.ones(4, 3))
    with pytest.raises(ConfigError, match="scale: holds entries that are not positive"):
        replace(weight, scale=torch.full((4, 1), 255, dtype=bytes_of).view(E8M0))  # its NaN
    with pytest.raises(ConfigError, match=r"outer_scale: expected float32 \[1, 1\]"):
        replace(weight, outer_scale=torch.ones(4, 1))
    with pytest.raises(ConfigError, match="outer_scale: holds entries that are not positive"):
        replace(weight, outer_scale=torch.zeros(1, 1))


def test_factors_of_an_adapter_may_be_of_tables() -> None:
    B, A = (random_coded(rows, columns, "nf4", 2, E8M0) for rows, columns in ((8, 12), (8, 16)))
    weight = Adapted(random_coded(12, 16, "e2m1", 1, torch.float16), Transposed(B), A)
    layout = WeightFormat.from_json(json.loads(json.dumps(format_of(weight).to_json())))
    assert layout.label == (
        "e2m1 channel + rank 8 (B nf4 group 6 e8m0 scales transposed, A nf4 group 8 e8m0 scales)"
    )
    again = unpack(layout, load(save(pack(weight))))
    assert torch.equal(again.dequantize(), weight.dequantize())


@pytest.mark.parametrize(
    ("key", "value"), [("table", "nf5"), ("scale_dtype", "int8"), ("scale_shape", [4])]
)
def test_json_that_is_no_codebook_is_refused(key: str, value: object) -> None:
    data = format_of(random_coded(4, 64, "nf4", 1, torch.float16)).to_json()
    with pytest.raises(RecordError, match="cannot be read"):
        WeightFormat.from_json({**data, "codebook": {**data["codebook"], key: value}})
