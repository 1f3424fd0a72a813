"""methods/formats/layout.py."""

import json

import pytest
import torch

from tests.methods.samples import (
    GridCase,
    indexed,
    packed_adapters,
    random_mask,
    random_quantized,
    with_adapter,
)
from trinity.methods.errors import RecordError
from trinity.methods.formats import (
    NM,
    AdapterFormat,
    CompressedWeight,
    Dense,
    Floats,
    Grid,
    Quantized,
    Sparse,
    Unstructured,
    WeightFormat,
    format_of,
    sparsity_of,
)


def every_kind() -> list[CompressedWeight]:
    """One weight for every combination of values, mask and adapter."""
    pattern, third = NM(2, 4), Unstructured(1 / 3)
    quantized = random_quantized(5, 24, GridCase(4, symmetric=False, groups=3))
    bare: list[Dense | Quantized | Sparse] = [
        Dense(torch.randn(5, 24).bfloat16()),
        quantized,
        indexed(quantized, 5),
        Sparse(indexed(quantized, 3), random_mask(5, 24, pattern), pattern),
        Sparse(Dense(torch.randn(5, 24)), random_mask(5, 24, third), third),
        Sparse(quantized, random_mask(5, 24, pattern), pattern),
    ]
    plain = [with_adapter(base, 2, torch.float16) for base in bare]
    return [*bare, *plain, *packed_adapters(bare[-1])]


def test_the_format_says_shape_values_mask_and_adapter() -> None:
    quantized = random_quantized(5, 24, GridCase(4, groups=3))
    base = Sparse(quantized, random_mask(5, 24, NM(2, 4)), NM(2, 4))
    assert format_of(with_adapter(base, 2, torch.float16)) == WeightFormat(
        shape=(5, 24),
        values=Grid(4, True, (5, 3), "float32"),
        pattern=NM(2, 4),
        adapter=AdapterFormat(2, "float16"),
    )


def test_the_format_of_floats_names_their_type() -> None:
    assert format_of(Dense(torch.ones(2, 3).half())) == WeightFormat((2, 3), Floats("float16"))


def test_formats_survive_json() -> None:
    for weight in every_kind():
        layout = format_of(weight)
        assert WeightFormat.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_a_plain_adapter_is_read_and_written_as_before_factors_could_be_packed() -> None:
    data = {"shape": [5, 24], "dtype": "float16", "adapter": {"rank": 2, "dtype": "bfloat16"}}
    layout = WeightFormat.from_json(data)
    assert layout.adapter == AdapterFormat(2, "bfloat16")
    assert layout.to_json()["adapter"] == data["adapter"]


def test_the_format_of_a_factor_is_that_of_the_matrix_that_is_stored() -> None:
    plain, *packed = (
        format_of(w)
        for w in [
            with_adapter(Dense(torch.ones(12, 16)), 8, torch.float16),
            *packed_adapters(Dense(torch.ones(12, 16))),
        ]
    )
    assert plain.factor("B") == WeightFormat((12, 8), Floats("float16"))
    assert plain.factor("A") == WeightFormat((8, 16), Floats("float16"))
    assert packed[0].factor("A") == WeightFormat((8, 16), Grid(4, True, (8, 2), "float16"))
    assert packed[3].factor("A") == WeightFormat((8, 16), Floats("float16"), NM(2, 4))
    assert packed[5].factor("A").shape == (16, 8)
    assert packed[5].factor("B").shape == (8, 12)


def test_the_label_of_packed_factors_is_short_where_both_are_alike() -> None:
    labels = [format_of(w).label for w in packed_adapters(Dense(torch.ones(16, 16).half()))]
    assert labels == [
        "float16 + rank 8 (B int4 group 4, A int4 group 8)",
        "float16 + rank 8 (B float16, A int4 group 8)",
        "float16 + rank 8 (B int4 group 4, A float16)",
        "float16 + rank 8 (B float16, A 2:4 float16)",
        "float16 + rank 8 (B int4 group 4, A 2:4 int4 group 8)",
        "float16 + rank 8 int3 channel asymmetric transposed",
    ]


def test_equal_formats_are_one_key() -> None:
    first, second = (format_of(random_quantized(5, 24, GridCase(4, groups=3))) for _ in range(2))
    assert len({first, second}) == 1


@pytest.mark.parametrize(
    ("weight", "label"),
    [
        (lambda: Dense(torch.ones(4, 16)), "float32"),
        (lambda: random_quantized(4, 16, GridCase(4)), "int4 tensor"),
        (lambda: random_quantized(4, 16, GridCase(8, groups=1)), "int8 channel"),
        (lambda: random_quantized(4, 16, GridCase(3, False, 2)), "int3 group 8 asymmetric"),
        (
            lambda: indexed(random_quantized(4, 16, GridCase(3, False, 2)), 3),
            "int3 group 6 by index asymmetric",
        ),
        (
            lambda: with_adapter(
                Sparse(
                    random_quantized(4, 16, GridCase(4)), random_mask(4, 16, NM(2, 4)), NM(2, 4)
                ),
                3,
                torch.float16,
            ),
            "2:4 int4 tensor + rank 3",
        ),
    ],
)
def test_the_label_reads_like_a_table_row(weight, label: str) -> None:  # type: ignore[no-untyped-def]
    assert format_of(weight()).label == label


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"shape": [4]},
        {"shape": 4},
        {"shape": [4, 8], "grid": {"bits": 4}},
        {"shape": [4, 8], "pattern": "2-4"},
        {"shape": [4, 8], "pattern": "4:4"},
        {"shape": [4, 8], "adapter": {"rank": 2}},
    ],
    ids=str,
)
def test_json_that_is_no_format_is_refused_as_a_record_error(data: dict[str, object]) -> None:
    with pytest.raises(RecordError, match=r"weight format .* cannot be read"):
        WeightFormat.from_json(data)


def test_sparsity_is_that_of_the_base_whatever_stands_beside_it() -> None:
    base = Sparse(Dense(torch.randn(4, 8)), random_mask(4, 8, NM(1, 4)), NM(1, 4))
    assert sparsity_of(base) == 0.75
    assert sparsity_of(with_adapter(base, 2, torch.float32)) == 0.75
    assert sparsity_of(Dense(torch.zeros(4, 8))) == 0
