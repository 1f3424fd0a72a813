"""Module storage: exact both ways, as small as it says, refused by name where it cannot be
packed.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from trinity.lowering.rows import row_storage
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import (
    Adapted,
    CompressedWeight,
    Dense,
    Quantized,
    Transposed,
    format_of,
)

Make = Callable[..., CompressedWeight]

PACKED = [
    ((5, 7), "float16", None, 0),
    ((5, 7), "bfloat16", None, 3),
    ((3, 172), "int4 tensor", None, 0),
    ((3, 43), "int2 channel", None, 0),
    ((3, 43), "int3 channel asymmetric", None, 2),
    ((4, 30), "int3 group 10", None, 0),
    ((4, 24), "int8 group 6 asymmetric", None, 0),
    ((3, 43), "nf4 channel", None, 2),
    ((4, 24), "e2m1 group 8 e4m3 outer", None, 0),
    ((4, 32), "nf4 group 8 e8m0", "2:4", 3),
    ((4, 24), "e4m3 tensor", "1:4", 0),
    ((4, 22), "rows of 3", None, 2),
    ((4, 24), "int8 tensor", "1:4", 0),
    ((3, 172), "int4 channel", "2:4", 5),
    ((3, 172), "float32", "2:4", 0),
    ((3, 40), "int3 group 8", "3:8", 0),
    ((3, 28), "int2 tensor", "3:7", 0),
    ((3, 32), "int4 channel asymmetric", "1:16", 0),
]


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), PACKED)
def test_unpack_inverts_pack_exactly(
    make_weight: Make, shape: tuple[int, int], kind: str, pattern: str | None, rank: int
) -> None:
    weight = make_weight(shape, kind, pattern, rank, torch.float16)
    layout = row_storage.layout_of(format_of(weight))
    again = layout.unpack(layout.pack(weight))
    assert format_of(again) == format_of(weight)
    assert torch.equal(again.dequantize(), weight.dequantize())
    repacked = layout.pack(again)
    assert all(torch.equal(repacked[key], value) for key, value in layout.pack(weight).items())


@pytest.mark.parametrize("kind", ["int4 group 8", "rows of 3", "bfloat16"])
def test_outliers_come_back_exactly(make_weight: Make, kind: str) -> None:
    weight = make_weight((4, 24), kind, None, 2, torch.float16, 3)
    layout = row_storage.layout_of(format_of(weight))
    again = layout.unpack(layout.pack(weight))
    assert format_of(again) == format_of(weight)
    assert torch.equal(again.dequantize(), weight.dequantize())


@pytest.mark.parametrize("kind", ["int4 group 8", "int4 group 8 asymmetric", "nf4 group 8"])
def test_an_unstructured_mask_over_codes_becomes_codes_that_mean_zero(
    make_weight: Make, kind: str
) -> None:
    weight = make_weight((6, 24), kind, "50%")
    layout = row_storage.layout_of(format_of(weight))
    again = layout.unpack(layout.pack(weight))
    assert torch.equal(again.dequantize(), weight.dequantize())


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), PACKED)
def test_module_bits_are_the_bytes_of_the_stored_tensors(
    make_weight: Make, shape: tuple[int, int], kind: str, pattern: str | None, rank: int
) -> None:
    weight = make_weight(shape, kind, pattern, rank)
    layout = row_storage.layout_of(format_of(weight))
    stored = sum(tensor.nbytes for tensor in layout.pack(weight).values())
    assert layout.bits() == 8 * stored / (shape[0] * shape[1])


def test_a_mask_over_a_rows_own_levels_is_refused_by_name(make_weight: Make) -> None:
    weight = make_weight((8, 32), "rows of 3", "2:4")
    with pytest.raises(UnsupportedError, match="because none of them need be zero"):
        row_storage.layout_of(format_of(weight))


def test_an_adapter_of_levels_is_refused_by_name(make_packed_adapter: Make) -> None:
    weight = make_packed_adapter((16, 32), 8, "nf4 group 8", "float16", "nf4 group 8")
    with pytest.raises(
        UnsupportedError, match="adapters of floats and uniform grids, and not of nf"
    ):
        row_storage.layout_of(format_of(weight))


def test_two_four_int4_takes_three_bits_and_its_scales(make_weight: Make) -> None:
    weight = make_weight((16, 128), "int4 group 64", "2:4", 0, torch.float16)
    layout = row_storage.layout_of(format_of(weight))
    assert layout.bits() == 3 + 16 / 64


def test_scale_groups_that_cut_sparse_groups_are_refused_by_name(make_weight: Make) -> None:
    weight = make_weight((4, 24), "int4 group 6", "2:4")
    with pytest.raises(UnsupportedError, match=r"scale groups of 6 inputs cut through groups of 4"):
        row_storage.layout_of(format_of(weight))


def test_groups_by_index_are_refused_by_name(make_weight: Make) -> None:
    weight = make_weight((4, 24), "int4 group 6", None)
    assert isinstance(weight, Quantized)
    index = torch.arange(24, dtype=torch.int32) % 4
    with pytest.raises(UnsupportedError, match=r"by index: an index assigns.*group_fit: static"):
        row_storage.layout_of(format_of(replace(weight, group_index=index)))


@pytest.mark.parametrize(
    ("high", "low"),
    [("int4 group 8", "int4 group 8"), ("float16", "2:4 float16"), ("int3 channel", "float16")],
)
def test_a_packed_adapter_comes_back_and_takes_the_bits_it_says(
    make_packed_adapter: Make, high: str, low: str
) -> None:
    weight = make_packed_adapter((24, 48), 8, "int4 channel", high, low)
    layout = row_storage.layout_of(format_of(weight))
    tensors = layout.pack(weight)
    again = layout.unpack(tensors)
    assert format_of(again) == format_of(weight)
    assert torch.equal(again.dequantize(), weight.dequantize())
    stored = sum(tensor.nbytes for tensor in tensors.values())
    assert layout.bits() == 8 * stored / (24 * 48)


def test_an_adapter_kept_as_its_transpose_is_refused_by_name() -> None:
    def quantized(rows: int, columns: int) -> Transposed:
        codes = torch.zeros(rows, columns, dtype=torch.int8)
        return Transposed(Quantized(codes, torch.ones(rows, 1), None, 4))

    weight = Adapted(Dense(torch.ones(24, 48)), quantized(8, 24), quantized(48, 8))
    with pytest.raises(UnsupportedError, match=r"transposed: .*adapter_groups_along: inputs"):
        row_storage.layout_of(format_of(weight))
