"""methods/slim_quant_o.py."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.methods.samples import assert_same_weight, random_mask, random_stats
from tests.oracles.slim import salient_columns, scaled_rounding
from trinity.methods import slim, slim_quant
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Quantized, Sparse, bits_per_weight, format_of
from trinity.methods.slim_quant_o import (
    SLIM_QUANT_O,
    SlimQuantOConfig,
    compress,
    salient_inputs,
)


def config(**options: Any) -> SlimQuantOConfig:
    """A tenth of the inputs, so that small layers have some that are salient."""
    return SlimQuantOConfig.model_validate({"fraction": 0.1, **options})


@pytest.mark.parametrize("saliency", ["second-moment", "mean-abs"])
def test_salient_inputs_have_the_largest_products_of_activation_and_weight(saliency: str) -> None:
    W, stats = torch.randn(16, 40), random_stats(40)
    assert stats.x_norm is not None
    assert stats.x_mean_abs is not None
    size = stats.x_norm if saliency == "second-moment" else stats.x_mean_abs
    expected = salient_columns(
        W.double().numpy(), size.double().numpy(), 4, shifted_square=saliency == "second-moment"
    )
    found = salient_inputs(W, stats, config(saliency=saliency))
    assert found.nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("factor", [2.0, 3.0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_salient_weights_are_rounded_on_a_grid_that_is_finer_by_the_factor(
    bits: int, factor: float
) -> None:
    W, salient = torch.randn(8, 20), torch.arange(20) % 7 == 3
    quantized = compress(W, salient, config(bits=bits, factor=factor, scale_dtype="float32"))
    expected = scaled_rounding(
        W.double().numpy(), float(quantized.scale), salient.numpy(), factor, bits
    )
    np.testing.assert_allclose(quantized.dequantize().double().numpy(), expected, atol=1e-6)


def test_the_scale_of_the_tensor_is_that_of_slim_quant_on_the_weight_as_it_is() -> None:
    W = torch.randn(16, 40)
    plain = slim_quant.compress(W, slim_quant.SlimQuantConfig())
    aware = compress(W, torch.arange(40) < 4, config())
    assert torch.equal(aware.scale, plain.scale)
    assert torch.equal(aware.codes[:, 4:], plain.codes[:, 4:])


def test_salient_weights_that_are_not_clipped_have_at_most_half_the_rounding_error() -> None:
    W, salient = torch.randn(64, 40) * 0.1, torch.arange(40) < 4
    W[0, -1] = 2.0
    quantized = compress(W, salient, config(objective="corrected"))
    half_step = float(quantized.scale) / 2
    inside = W[:, :4].abs() < 7 * half_step
    error = (quantized.dequantize() - W)[:, :4].abs()[inside]
    assert float(error.max()) <= half_step / 2 * (1 + 1e-5)


def test_salient_weights_beyond_half_the_range_are_clipped() -> None:
    W, salient = torch.randn(16, 40), torch.arange(40) < 4
    W[3, 1] = 100
    quantized = compress(W, salient, config())
    decoded = quantized.dequantize()
    assert float(decoded[3, 1]) == pytest.approx(7 * float(quantized.scale) / 2)


def test_the_scales_of_the_inputs_are_stored_and_counted() -> None:
    W, stats = torch.randn(32, 40), random_stats(40)
    weight = SLIM_QUANT_O.compress(W, Dense(W), stats, config())
    assert isinstance(weight, Quantized)
    assert weight.input_scale is not None
    assert sorted(set(weight.input_scale.tolist())) == [0.5, 1.0]
    assert format_of(weight).label == "int4 tensor scaled inputs"
    assert bits_per_weight(weight) == 4 + (32 + 16 * 40) / W.numel()


def test_too_few_inputs_to_have_a_salient_one_leave_slim_quant() -> None:
    W, stats = torch.randn(8, 40), random_stats(40)
    weight = SLIM_QUANT_O.compress(W, Dense(W), stats, SlimQuantOConfig())
    assert_same_weight(weight, slim_quant.compress(W, slim_quant.SlimQuantConfig()))


def test_scaling_all_activations_changes_nothing() -> None:
    W, stats = torch.randn(16, 40), random_stats(40)
    assert stats.x_norm is not None
    louder = LayerStats(x_norm=64 * stats.x_norm)
    one, other = (SLIM_QUANT_O.compress(W, Dense(W), s, config()) for s in (stats, louder))
    assert_same_weight(one, other)


def test_a_pruned_weight_is_quantized_under_its_mask() -> None:
    W, stats, mask = torch.randn(16, 40), random_stats(40), random_mask(16, 40, NM(2, 4))
    current = Sparse(Dense(W), mask, NM(2, 4))
    weight = SLIM_QUANT_O.compress(W, current, stats, config())
    assert isinstance(weight, Sparse)
    assert torch.equal(weight.mask, mask)
    assert not weight.dequantize()[~mask].any()


def test_the_composite_scales_the_same_inputs_before_and_after_the_adapter() -> None:
    W, stats = torch.randn(16, 200), random_stats(200)
    options = slim.SlimConfig.model_validate(
        {"pattern": "2:4", "quantizer": "slim-quant-o", "adapter": "refit"}
    )
    weight = slim.compress(W, stats, options)
    assert isinstance(weight.base, Sparse)
    assert isinstance(weight.base.values, Quantized)
    scale = weight.base.values.input_scale
    assert scale is not None
    assert torch.equal(scale < 1, salient_inputs(W, stats, SlimQuantOConfig()))


def test_missing_statistics_are_refused_with_both_ways_out() -> None:
    W = torch.randn(4, 8)
    with pytest.raises(ConfigError, match=r"slim-quant-o: .*calibration.*use slim-quant"):
        SLIM_QUANT_O.compress(W, Dense(W), LayerStats(), config())


@pytest.mark.parametrize("options", [{"factor": 1.0}, {"fraction": 0}, {"fraction": 1.0}])
def test_options_that_scale_nothing_or_everything_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"greater than|less than"):
        config(**options)
