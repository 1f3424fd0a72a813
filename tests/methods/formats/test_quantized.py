"""methods/formats/quantized.py."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.methods.samples import GRIDS, GridCase, indexed, random_quantized
from tests.oracles.quantization import decode
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Grid, Quantized


@pytest.mark.parametrize("case", GRIDS, ids=str)
def test_decoding_equals_the_definition_one_number_at_a_time(case: GridCase) -> None:
    weight = random_quantized(5, 24, case)
    zero_point = None if weight.zero_point is None else weight.zero_point.numpy().astype(np.int64)
    expected = decode(
        weight.codes.numpy().astype(np.int64), weight.scale.double().numpy(), zero_point
    )
    # One product in float32 of numbers that are exact in float32: half a unit in the last place.
    np.testing.assert_allclose(weight.dequantize().double().numpy(), expected, rtol=6e-8)


def test_the_grid_says_bits_symmetry_and_what_shares_a_scale() -> None:
    weight = random_quantized(5, 24, GridCase(3, symmetric=False, groups=3))
    assert weight.grid == Grid(3, False, (5, 3), "float32")
    assert weight.group_size == 8


def test_a_quantized_weight_is_frozen() -> None:
    weight = random_quantized(2, 8, GridCase(4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        weight.bits = 8  # type: ignore[misc]


def test_a_transposed_code_matrix_decodes_like_its_copy() -> None:
    codes = torch.randint(-8, 8, (8, 6), dtype=torch.int8).T
    scale = torch.rand(6, 2) + 0.5
    decoded = Quantized(codes, scale, None, 4).dequantize()
    assert torch.equal(decoded, Quantized(codes.contiguous(), scale, None, 4).dequantize())


@pytest.mark.parametrize("bits", [1, 5, 16])
def test_a_width_that_is_not_stored_is_refused_naming_those_that_are(bits: int) -> None:
    with pytest.raises(ConfigError, match=f"{bits} is not one of 2, 3, 4, 8"):
        Quantized(torch.zeros(2, 2, dtype=torch.int8), torch.ones(1, 1), None, bits)


@pytest.mark.parametrize(("bits", "code"), [(2, 2), (2, -3), (3, 4), (4, 8), (4, -9)])
def test_a_signed_code_off_the_grid_is_refused_with_the_range(bits: int, code: int) -> None:
    codes = torch.zeros(2, 2, dtype=torch.int8)
    codes[0, 1] = code
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    with pytest.raises(ConfigError, match=rf"outside {low}\.\.{high} of {bits} bits"):
        Quantized(codes, torch.ones(1, 1), None, bits)


def test_an_unsigned_code_off_the_grid_is_refused_with_the_range() -> None:
    codes = torch.full((2, 2), 16, dtype=torch.uint8)
    with pytest.raises(ConfigError, match=r"outside 0\.\.15 of 4 bits"):
        Quantized(codes, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.uint8), 4)


def test_unsigned_codes_without_a_zero_point_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"codes: expected torch\.int8.*found torch\.uint8"):
        Quantized(torch.zeros(2, 2, dtype=torch.uint8), torch.ones(1, 1), None, 4)


@pytest.mark.parametrize("shape", [(2, 1), (4, 3), (1, 2), (3, 8), (4, 0)], ids=str)
def test_a_scale_that_fits_neither_tensor_channel_nor_group_is_refused(
    shape: tuple[int, int],
) -> None:
    with pytest.raises(ConfigError, match=rf"scale: \[{shape[0]}, {shape[1]}\] does not fit codes"):
        Quantized(torch.zeros(4, 8, dtype=torch.int8), torch.ones(shape), None, 4)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_not_positive_and_finite_is_refused_with_advice(bad: float) -> None:
    with pytest.raises(ConfigError, match=r"not positive finite.*store scales as float32"):
        Quantized(torch.zeros(2, 2, dtype=torch.int8), torch.full((1, 1), bad), None, 4)


def test_a_scale_of_whole_numbers_is_refused() -> None:
    scale = torch.ones(1, 1, dtype=torch.int32)
    with pytest.raises(ConfigError, match=r"scale: expected a float matrix.*int32"):
        Quantized(torch.zeros(2, 2, dtype=torch.int8), scale, None, 4)


def test_a_zero_point_must_have_the_shape_of_the_scale() -> None:
    codes, zero_point = torch.zeros(2, 4, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.uint8)
    with pytest.raises(ConfigError, match=r"zero_point: expected uint8 \[2, 1\].*\[2, 2\]"):
        Quantized(codes, torch.ones(2, 1), zero_point, 4)


def test_a_zero_point_must_fit_the_bits() -> None:
    zero_point = torch.full((1, 1), 8, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="zero_point: 8 does not fit 3 bits"):
        Quantized(torch.zeros(2, 4, dtype=torch.uint8), torch.ones(1, 1), zero_point, 3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("groups", [1, 3, 5])
def test_an_index_says_which_group_an_input_belongs_to(groups: int, symmetric: bool) -> None:
    weight = indexed(random_quantized(5, 24, GridCase(4, symmetric, 1)), groups)
    zero_point = None if weight.zero_point is None else weight.zero_point.numpy().astype(np.int64)
    assert weight.group_index is not None
    expected = decode(
        weight.codes.numpy().astype(np.int64),
        weight.scale.double().numpy(),
        zero_point,
        weight.group_index.tolist(),
    )
    np.testing.assert_allclose(weight.dequantize().double().numpy(), expected, rtol=6e-8)
    assert weight.grid == Grid(4, symmetric, (5, groups), "float32", indexed=True)


def test_an_index_of_consecutive_groups_decodes_like_none() -> None:
    weight = random_quantized(5, 24, GridCase(4, False, 3))
    index = (torch.arange(24) // 8).to(torch.int32)
    again = dataclasses.replace(weight, group_index=index)
    assert torch.equal(again.dequantize(), weight.dequantize())


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (torch.zeros(24, dtype=torch.int64), r"expected int32 \[24\].*int64"),
        (torch.zeros(23, dtype=torch.int32), r"expected int32 \[24\].*\[23\]"),
        (torch.full((24,), 3, dtype=torch.int32), r"3\.\.3 is outside the 3 groups"),
        (torch.full((24,), -1, dtype=torch.int32), r"-1\.\.-1 is outside the 3 groups"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(index: torch.Tensor, reason: str) -> None:
    weight = random_quantized(5, 24, GridCase(4, True, 3))
    with pytest.raises(ConfigError, match=reason):
        dataclasses.replace(weight, group_index=index)


def test_scaled_inputs_multiply_the_columns_of_what_is_decoded() -> None:
    plain = random_quantized(5, 24, GridCase(4, symmetric=False, groups=3))
    inputs = torch.rand(24) + 0.5
    scaled = replace(plain, input_scale=inputs)
    torch.testing.assert_close(scaled.dequantize(), plain.dequantize() * inputs)
    assert scaled.grid.input_scale == "float32"
    assert plain.grid.input_scale is None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.ones(23), r"input_scale: expected floats \[24\]"),
        (torch.ones(24, dtype=torch.float64), r"input_scale: expected floats \[24\]"),
        (torch.zeros(24), "input_scale: holds entries that are not positive"),
        (torch.full((24,), torch.nan), "input_scale: holds entries that are not positive"),
    ],
    ids=["shape", "type", "zero", "nan"],
)
def test_input_scales_that_do_not_fit_are_refused(inputs: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(random_quantized(5, 24, GridCase(4)), input_scale=inputs)
