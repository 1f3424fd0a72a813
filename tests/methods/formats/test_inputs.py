"""methods/formats/inputs.py."""

import json

import numpy as np
import pytest
import torch

from tests.oracles.inputs import E4M3, E5M2, int8_rounded, nearest_distance
from trinity.methods.errors import ConfigError, RecordError
from trinity.methods.formats import InputFormat
from trinity.methods.formats.hadamard import hadamard

FP8 = InputFormat("fp8")
EVERY = [FP8, InputFormat("int8"), InputFormat("int8", 8)]


@pytest.mark.parametrize(
    ("largest", "numbers", "top"),
    [(3.0, E4M3, 447.0), (487.9, E4M3, 447.0), (500.0, E5M2, 57343.0)],
)
def test_fp8_inputs_are_the_nearest_numbers_of_their_type(
    largest: float, numbers: list[float], top: float
) -> None:
    x = torch.randn(4, 16)
    x *= largest / x.abs().max()
    found = FP8.rounded(x).double() / largest * top
    scaled = x.double() / largest * top
    for value, rounded in zip(scaled.flatten().tolist(), found.flatten().tolist(), strict=True):
        # The scaling back and forth is float32.
        assert nearest_distance(rounded, numbers) <= 1e-5 * max(abs(rounded), 1)
        assert abs(rounded - value) <= nearest_distance(value, numbers) + 1e-5 * max(abs(value), 1)


@pytest.mark.parametrize("group", [None, 8])
def test_int8_inputs_are_rounded_with_the_scale_of_their_token_or_group(group: int | None) -> None:
    x = torch.randn(2, 3, 24) * torch.logspace(-2, 2, 24)
    expected = int8_rounded(x.double().numpy(), group or 24)
    found = InputFormat("int8", group).rounded(x)
    np.testing.assert_allclose(found.double().numpy(), expected, atol=1e-4)


def test_int8_tokens_do_not_depend_on_each_other() -> None:
    x = torch.randn(5, 16)
    alone = torch.stack([InputFormat("int8").rounded(token) for token in x])
    assert torch.equal(InputFormat("int8").rounded(x), alone)


@pytest.mark.parametrize("inputs", EVERY, ids=lambda f: f.label)
def test_zeros_stay_zeros_and_the_largest_input_stays(inputs: InputFormat) -> None:
    assert not inputs.rounded(torch.zeros(3, 16)).any()
    x = torch.zeros(3, 16)
    x[1, 2] = -1e-6
    torch.testing.assert_close(inputs.rounded(x), x, rtol=5e-3, atol=0)


@pytest.mark.parametrize("inputs", EVERY, ids=lambda f: f.label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_type_and_shape_are_kept_and_the_input_left_unchanged(
    inputs: InputFormat, dtype: torch.dtype
) -> None:
    x = torch.randn(2, 3, 16).to(dtype)
    before = x.clone()
    found = inputs.rounded(x)
    assert found.dtype == dtype
    assert found.shape == x.shape
    assert torch.equal(x, before)
    assert not torch.equal(found, x)


@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10])
def test_integer_inputs_are_scaled_as_their_values_are(factor: float) -> None:
    x = torch.randn(4, 16)
    for inputs in EVERY[1:]:
        torch.testing.assert_close(inputs.rounded(factor * x), factor * inputs.rounded(x))


@pytest.mark.parametrize("inputs", EVERY, ids=lambda f: f.label)
def test_input_formats_survive_json(inputs: InputFormat) -> None:
    assert InputFormat.from_json(json.loads(json.dumps(inputs.to_json()))) == inputs


def test_labels_and_problems_name_the_groups() -> None:
    assert [inputs.label for inputs in EVERY] == ["fp8 tensor", "int8 token", "int8 group 8"]
    assert InputFormat("int8", 8).problem((4, 12)) == "inputs.group_size 8 does not divide in = 12"
    assert all(inputs.problem((4, 16)) is None for inputs in EVERY)


def test_what_is_no_input_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="group_size 8 does not go with fp8"):
        InputFormat("fp8", 8)
    with pytest.raises(RecordError, match=r"input format .* cannot be read"):
        InputFormat.from_json({"kind": "int4", "group_size": None})


def test_inputs_are_turned_before_they_are_rounded() -> None:
    x, H = torch.randn(3, 24), hadamard(12)
    assert H is not None
    exact = torch.cat([part @ H / 12**0.5 for part in x.split(12, dim=1)], dim=1)
    turned = InputFormat(None, turned=12)
    torch.testing.assert_close(turned.rounded(x), exact)
    both = InputFormat("int8", 6, turned=12)
    torch.testing.assert_close(both.rounded(x), InputFormat("int8", 6).rounded(exact))
    assert both.unrounded == turned
    assert InputFormat("int8").unrounded is None
    assert InputFormat.from_json(both.to_json()) == both
    assert (turned.label, both.label) == ("turned by 12", "turned by 12 int8 group 6")
    assert "turned 12 does not divide in = 20" in str(turned.problem((4, 20)))


def test_a_size_without_a_matrix_and_nothing_to_do_are_refused() -> None:
    with pytest.raises(ConfigError, match="no Hadamard matrix of 92 rows"):
        InputFormat(None, turned=92)
    with pytest.raises(ConfigError, match="kind 'None' is not fp8 or int8"):
        InputFormat(None)
