"""methods/formats/adapter.py."""

import numpy as np
import pytest
import torch

from tests.methods.samples import GridCase, random_mask, random_quantized, with_adapter
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Adapted, AdapterFormat, Dense, Sparse


def test_an_adapted_weight_decodes_to_base_plus_product() -> None:
    base = Sparse(random_quantized(5, 8, GridCase(4)), random_mask(5, 8, NM(2, 4)), NM(2, 4))
    weight = with_adapter(base, 3, torch.float16)
    product = weight.B.double().numpy() @ weight.A.double().numpy()
    expected = base.dequantize().double().numpy() + product
    # Three products and two sums in float32 of numbers of order one.
    np.testing.assert_allclose(weight.dequantize().double().numpy(), expected, atol=2e-6)


def test_the_adapter_format_is_rank_and_type() -> None:
    weight = with_adapter(Dense(torch.randn(5, 8)), 3, torch.bfloat16)
    assert weight.adapter_format == AdapterFormat(3, "bfloat16")
    assert weight.shape == (5, 8)


@pytest.mark.parametrize(
    ("B", "A"), [((4, 2), (2, 8)), ((5, 2), (2, 7)), ((5, 2), (3, 8)), ((2, 5), (8, 2))]
)
def test_factors_whose_product_does_not_fit_are_refused_with_both_shapes(
    B: tuple[int, int], A: tuple[int, int]
) -> None:
    with pytest.raises(ConfigError, match=r"B \[\d, \d\] and A \[\d, \d\] do not make a \[5, 8\]"):
        Adapted(Dense(torch.ones(5, 8)), torch.ones(B), torch.ones(A))


def test_factors_of_two_types_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"B is torch\.float16 and A is torch\.float32"):
        Adapted(Dense(torch.ones(5, 8)), torch.ones(5, 2).half(), torch.ones(2, 8))


def test_a_rank_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="adapter B: expected a matrix"):
        Adapted(Dense(torch.ones(5, 8)), torch.ones(5, 0), torch.ones(0, 8))


def test_factors_that_overflow_are_refused_naming_the_factor() -> None:
    large = torch.full((2, 8), 1e6).half()
    with pytest.raises(ConfigError, match=r"adapter A: holds NaN or infinity in torch\.float16"):
        Adapted(Dense(torch.ones(5, 8)), torch.ones(5, 2).half(), large)
