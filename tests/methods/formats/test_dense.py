"""methods/formats/dense.py."""

import dataclasses

import pytest
import torch

from trinity.methods.errors import ConfigError
from trinity.methods.formats import Dense


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_dense_weight_decodes_to_its_own_values_in_float32(dtype: torch.dtype) -> None:
    values = torch.randn(3, 5).to(dtype)
    decoded = Dense(values).dequantize()
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, values.to(torch.float32))


def test_changing_a_decoded_weight_leaves_the_stored_one_as_it_was() -> None:
    weight = Dense(torch.ones(2, 2))
    weight.dequantize().zero_()
    assert torch.equal(weight.values, torch.ones(2, 2))


def test_a_dense_weight_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Dense(torch.ones(2, 2)).values = torch.zeros(2, 2)  # type: ignore[misc]


@pytest.mark.parametrize(
    "shape", [(4,), (2, 2, 2), (0, 4), (4, 0)], ids=["vector", "3-d", "no rows", "no columns"]
)
def test_what_is_no_matrix_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected a matrix \[out, in\].*\[" + str(shape[0])):
        Dense(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.bool])
def test_a_type_that_is_not_stored_is_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=rf"found {dtype}"):
        Dense(torch.zeros(2, 2, dtype=dtype))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    values = torch.ones(2, 2)
    values[1, 0] = bad
    with pytest.raises(ConfigError, match=r"NaN or infinity in torch\.float32"):
        Dense(values)
