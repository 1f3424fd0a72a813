"""methods/formats/outliers.py."""

import json

import pytest
import torch
from safetensors.torch import load, save

from tests.methods.samples import GridCase, random_mask, random_quantized, random_row_coded
from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats import (
    NM,
    Adapted,
    CompressedWeight,
    Dense,
    Sparse,
    WeightFormat,
    WithOutliers,
    bits_per_weight,
    format_of,
    pack,
    sparsity_of,
    unpack,
    with_outliers,
)
from trinity.methods.training.straight_through import like

PATTERN = NM(2, 4)


def entries(out: int, d_in: int, most: int) -> torch.Tensor:
    """A matrix with at most so many entries a row, and none in the first."""
    S = torch.zeros(out, d_in)
    for row in range(1, out):
        some = torch.randperm(d_in)[: row % most + 1]
        S[row, some] = torch.randn(len(some)).half().float()
    return S


def every_kind() -> list[CompressedWeight]:
    S = entries(6, 16, 3)
    quantized = random_quantized(6, 16, GridCase(4, groups=2))
    sparse = Sparse(quantized, random_mask(6, 16, PATTERN), PATTERN)
    beside = with_outliers(sparse, S, 3, torch.float16)
    return [
        with_outliers(quantized, S, 3, torch.float16),
        with_outliers(random_row_coded(6, 16, 3, torch.float16, 6), S, 5, torch.float32),
        with_outliers(Dense(torch.randn(6, 16)), S, 3, torch.bfloat16),
        beside,
        Adapted(beside, torch.randn(6, 2), torch.randn(2, 16)),
    ]


def test_they_are_added_to_the_weight() -> None:
    base, S = random_quantized(6, 16, GridCase(4)), entries(6, 16, 3)
    weight = with_outliers(base, S, 3, torch.float16)
    for i in range(6):
        for j in range(16):
            assert weight.dequantize()[i, j] == base.dequantize()[i, j] + S[i, j]
    assert torch.equal(weight.term(), S)


@pytest.mark.parametrize("index", range(5))
def test_a_weight_with_outliers_survives_a_file(index: int) -> None:
    weight = every_kind()[index]
    layout = WeightFormat.from_json(json.loads(json.dumps(format_of(weight).to_json())))
    assert layout == format_of(weight)
    again = unpack(layout, load(save(pack(weight))))
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert {name: of.tolist() for name, of in pack(again).items()} == {
        name: of.tolist() for name, of in pack(weight).items()
    }


def test_bits_are_counted_from_the_bytes() -> None:
    base, S = random_quantized(6, 16, GridCase(4, groups=1)), entries(6, 16, 3)
    weight = with_outliers(base, S, 3, torch.float16)
    more = 6 * 16 + int((S != 0).sum()) * (16 + 16)
    assert bits_per_weight(weight) == pytest.approx(bits_per_weight(base) + more / (6 * 16))


def test_words_and_the_sparsity_of_the_base() -> None:
    weight = every_kind()[4]
    assert format_of(weight).label == "2:4 int4 group 8 + 3 outliers + rank 2"
    assert sparsity_of(weight) == 0.5


def test_equal_weights_are_stored_in_equal_bytes() -> None:
    base = Dense(torch.zeros(2, 8))
    columns = torch.tensor([[5, 0, 2], [7, 3, 1]])
    values = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 4.0]])
    weight = WithOutliers(base, columns, values)
    assert weight.columns.tolist() == [[2, 5, 0], [1, 0, 0]]
    assert weight.values.tolist() == [[2.0, 1.0, 0.0], [4.0, 0.0, 0.0]]
    assert weight.columns.dtype == torch.int16


def test_wide_layers_have_wide_indices() -> None:
    weight = WithOutliers(
        Dense(torch.zeros(1, 40_000)), torch.tensor([[39_999]]), torch.tensor([[2.0]])
    )
    assert weight.columns.dtype == torch.int32
    assert weight.dequantize()[0, 39_999] == 2


def test_tuning_leaves_them_and_moves_what_is_beside_them() -> None:
    weight = every_kind()[0]
    assert isinstance(weight, WithOutliers)
    moved = like(weight, weight.dequantize() + 0.01)
    assert isinstance(moved, WithOutliers)
    assert torch.equal(moved.term(), weight.term())
    same = like(weight, weight.dequantize())
    assert isinstance(same, WithOutliers)
    torch.testing.assert_close(same.dequantize(), weight.dequantize())


@pytest.mark.parametrize(
    ("columns", "values", "what"),
    [
        ([[8]], [[1.0]], "column 8 is not one of 8 inputs"),
        ([[-1]], [[1.0]], "column -1 is not one"),
        ([[3, 3]], [[1.0, 2.0]], "two of one column"),
        ([[3]], [[float("inf")]], "not finite"),
        ([[3, 4]], [[1.0]], "do not fit a weight"),
    ],
)
def test_what_is_no_entry_of_the_weight_is_refused(
    columns: list[list[int]], values: list[list[float]], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        WithOutliers(Dense(torch.zeros(1, 8)), torch.tensor(columns), torch.tensor(values))


def test_more_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="a row has 3, and there is room for 2"):
        with_outliers(
            Dense(torch.zeros(1, 8)), torch.tensor([[1.0] * 3 + [0.0] * 5]), 2, torch.half
        )


def test_a_damaged_file_is_refused() -> None:
    weight = every_kind()[0]
    tensors = pack(weight)
    for name in ("outlier_counts", "outlier_columns", "outlier_values"):
        less = {key: of for key, of in tensors.items() if key != name}
        with pytest.raises(RecordError, match=name):
            unpack(format_of(weight), less)
        short = {**tensors, name: tensors[name][:-1]}
        with pytest.raises(RecordError):
            unpack(format_of(weight), short)
    with pytest.raises(RecordError, match="cannot be read"):
        WeightFormat.from_json({**format_of(weight).to_json(), "outliers": {"room": 0}})
