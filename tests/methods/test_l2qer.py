"""methods/l2qer.py."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.methods.samples import random_mask, random_stats
from tests.oracles.low_rank import best_product, remaining_error, weighted_norm
from trinity.methods import registry, rtn, slim_lora
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Adapted, Dense, Quantized, Sparse
from trinity.methods.l2qer import L2QER, L2qerConfig, compress, error, saliency


def config(**options: Any) -> L2qerConfig:
    """Factors in float32, so that only the algorithm is judged."""
    return L2qerConfig.model_validate({"dtype": "float32", **options})


def quantized(W: torch.Tensor) -> Quantized:
    return rtn.compress(W, rtn.RtnConfig(bits=3, group_size=8))


def layer(out: int = 8, d_in: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and the mean magnitudes of its inputs, over two orders of magnitude."""
    return torch.randn(out, d_in), 10 ** (2 * torch.rand(d_in) - 1)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_adapter_is_the_best_of_its_rank_in_the_weighted_norm(rank: int) -> None:
    W, x = layer()
    base = quantized(W)
    weight = compress(W, base, x, config(rank=rank))
    E, s = (W - base.dequantize()).double().numpy(), x.double().numpy()
    product = (weight.B @ weight.A).double().numpy()
    np.testing.assert_allclose(product, best_product(E, s, rank), atol=1e-4)
    left = weighted_norm(E - product, s)
    assert left == pytest.approx(remaining_error(E, s, rank), rel=1e-3, abs=1e-4)


def test_beside_a_mask_it_repairs_what_quantization_did_to_the_kept_weights() -> None:
    W, x = layer()
    mask = random_mask(8, 16, NM(2, 4))
    current = Sparse(quantized(W), mask, NM(2, 4))
    weight = compress(W, current, x, config(rank=8))
    expected = current.dequantize() + (W - quantized(W).dequantize()) * mask
    torch.testing.assert_close(weight.dequantize(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(weight.dequantize(), W * mask, atol=1e-5, rtol=0)


def test_repairs_all_brings_back_what_pruning_took_as_well() -> None:
    W, x = layer()
    current = Sparse(quantized(W), random_mask(8, 16, NM(2, 4)), NM(2, 4))
    weight = compress(W, current, x, config(rank=8, repairs="all"))
    torch.testing.assert_close(weight.dequantize(), W, atol=1e-5, rtol=0)


def test_without_a_mask_both_repair_the_same() -> None:
    W, _ = layer()
    for current in (quantized(W), Dense(W.half())):
        assert torch.equal(error(W, current, "quantization"), error(W, current, "all"))


def test_repairs_all_is_slim_lora_with_its_own_saliency() -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    assert stats.x_mean_abs is not None
    current = Sparse(quantized(W), random_mask(8, 16, NM(2, 4)), NM(2, 4))
    ours = compress(W, current, stats.x_mean_abs, config(rank=3, repairs="all"))
    shifted = LayerStats(x_mean_abs=stats.x_mean_abs - stats.x_mean_abs.min() / 2)
    options = {"rank": 3, "saliency": "mean-abs", "dtype": "float32"}
    theirs = slim_lora.compress(
        W, current, shifted, slim_lora.SlimLoraConfig.model_validate(options)
    )
    assert shifted.x_mean_abs is not None
    # x - m/2 plus its own smallest entry, m/2, is x again.
    torch.testing.assert_close(ours.dequantize(), theirs.dequantize(), atol=1e-4, rtol=0)


def test_the_scale_of_the_inputs_does_not_matter() -> None:
    W, x = layer()
    x[3] = 0
    quiet, loud = (compress(W, quantized(W), c * x, config(rank=3)) for c in (1, 1024))
    torch.testing.assert_close(loud.B @ loud.A, quiet.B @ quiet.A, atol=1e-5, rtol=0)


def test_saliency_is_positive_also_for_dead_inputs() -> None:
    assert saliency(torch.tensor([0.0, 0.5, 2.0])).tolist() == [0.5, 0.5, 2.0]
    assert saliency(torch.zeros(3)).tolist() == [1, 1, 1]


def test_exact_weights_need_no_adapter() -> None:
    W, x = layer()
    mask = random_mask(8, 16, NM(2, 4))
    weight = compress(W, Sparse(Dense(W), mask, NM(2, 4)), x, config(rank=3))
    assert torch.equal(weight.dequantize(), W * mask)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_factors_are_stored_in_the_type_asked_for(dtype: str) -> None:
    W, x = layer()
    weight = compress(W, quantized(W), x, config(rank=2, dtype=dtype))
    assert str(weight.A.dtype) == str(weight.B.dtype) == f"torch.{dtype}"


def test_inputs_are_left_unchanged() -> None:
    W, x = layer()
    current = Sparse(quantized(W), random_mask(8, 16, NM(2, 4)), NM(2, 4))
    before = W.clone(), x.clone(), current.dequantize()
    compress(W, current, x, config(rank=2))
    assert torch.equal(W, before[0])
    assert torch.equal(x, before[1])
    assert torch.equal(current.dequantize(), before[2])


def test_missing_statistics_and_a_second_adapter_are_refused() -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    with pytest.raises(ConfigError, match="l2qer: needs mean input magnitudes"):
        L2QER.compress(W, quantized(W), LayerStats(), config())
    once = L2QER.compress(W, quantized(W), stats, config())
    assert isinstance(once, Adapted)
    with pytest.raises(ConfigError, match=r"l2qer: .* already gave this weight adapters"):
        L2QER.compress(W, once, stats, config())


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 1.5}, {"repairs": "pruning"}], ids=str)
def test_options_that_mean_nothing_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="method 'l2qer'"):
        registry.configure("l2qer", options)
