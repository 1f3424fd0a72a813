"""methods/formats/adapter.py."""

import numpy as np
import pytest
import torch

from tests.methods.samples import (
    GridCase,
    packed_adapters,
    random_mask,
    random_quantized,
    with_adapter,
)
from tests.oracles import quantization as oracle
from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    NM,
    Adapted,
    AdapterFormat,
    Dense,
    FactorFormat,
    Floats,
    Grid,
    Sparse,
    Transposed,
)


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


def test_packed_factors_decode_to_the_product_of_what_they_hold() -> None:
    base = random_quantized(12, 16, GridCase(4))
    for weight in packed_adapters(base):
        B, A = (
            (factor.double() if isinstance(factor, torch.Tensor) else factor.dequantize().double())
            for factor in (weight.B, weight.A)
        )
        assert B.shape == (12, 8)
        assert A.shape == (8, 16)
        expected = base.dequantize().double() + B @ A
        np.testing.assert_allclose(weight.dequantize().double(), expected, atol=5e-5)


def test_a_transposed_factor_decodes_with_one_scale_for_every_run_down_a_column() -> None:
    stored = random_quantized(3, 6, GridCase(4, groups=2))
    factor = Transposed(stored)
    assert factor.shape == (6, 3)
    expected = oracle.decode(stored.codes.long().numpy(), stored.scale.double().numpy(), None).T
    np.testing.assert_allclose(factor.dequantize().double().numpy(), expected, rtol=1e-6)


def test_the_format_of_packed_factors_says_what_each_of_them_is() -> None:
    base = Dense(torch.randn(12, 16).half())
    grid_b, grid_a = Grid(4, True, (12, 2), "float16"), Grid(4, True, (8, 2), "float16")
    formats = [weight.adapter_format for weight in packed_adapters(base)]
    pruned = FactorFormat(Floats("float16"), NM(2, 4))
    assert formats[0] == AdapterFormat(8, None, FactorFormat(grid_b), FactorFormat(grid_a))
    assert formats[1] == AdapterFormat(8, "float16", A=FactorFormat(grid_a))
    assert formats[2] == AdapterFormat(8, "float16", B=FactorFormat(grid_b))
    assert formats[3] == AdapterFormat(8, "float16", A=pruned)
    assert FactorFormat(grid_a, pattern=NM(2, 4)) == formats[4].A
    assert FactorFormat(Grid(3, False, (8, 1), "float32"), transposed=True) == formats[5].B


def test_a_format_that_leaves_a_factor_open_is_refused() -> None:
    with pytest.raises(ConfigError, match="adapter format: type None does not go with"):
        AdapterFormat(8, None, B=FactorFormat(Floats("float16"), NM(2, 4)))
    with pytest.raises(ConfigError, match="adapter format: type float16 does not go with"):
        AdapterFormat(
            8, "float16", FactorFormat(Floats("float16")), FactorFormat(Floats("float16"))
        )


def test_packed_factors_whose_product_does_not_fit_are_refused() -> None:
    quantized = random_quantized(4, 8, GridCase(4))
    with pytest.raises(ConfigError, match=r"B \[5, 4\] and A \[8, 4\] do not make a \[5, 8\]"):
        Adapted(Dense(torch.ones(5, 8)), torch.ones(5, 4), Transposed(quantized))
