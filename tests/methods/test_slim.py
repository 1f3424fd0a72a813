"""methods/slim.py."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.methods.samples import GridCase, assert_same_weight, random_quantized, random_stats
from tests.oracles import slim as oracle
from trinity.methods import registry, slim_lora, slim_quant, wanda
from trinity.methods.contract import LayerStats, Method
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Adapted, CompressedWeight, Dense, Quantized, Sparse
from trinity.methods.slim import SLIM, SlimConfig, compress


def config(**options: Any) -> SlimConfig:
    """2:4 at rank 3, factors in float32."""
    return SlimConfig.model_validate({"pattern": "2:4", "rank": 3, "dtype": "float32", **options})


def refit(**options: Any) -> SlimConfig:
    """The published code's way."""
    return config(adapter="refit", **options)


def parts(weight: Adapted) -> tuple[Sparse, Quantized]:
    """The sparse base and its codes."""
    assert isinstance(weight.base, Sparse)
    assert isinstance(weight.base.values, Quantized)
    return weight.base, weight.base.values


def steps(
    W: torch.Tensor, stats: LayerStats, *recipe: tuple[str, dict[str, Any]]
) -> CompressedWeight:
    """A recipe's steps, one after the other, through the registry."""
    current: CompressedWeight = Dense(W)
    for name, options in recipe:
        method = registry.get(name)
        assert isinstance(method, Method)
        current = method.compress(W, current, stats, registry.configure(name, options))
    return current


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_refit_is_the_published_order_of_operations(bits: int, n: int, m: int) -> None:
    W, stats = torch.randn(12, 24), random_stats(24)
    assert stats.x_norm is not None
    weight = compress(W, stats, refit(pattern=f"{n}:{m}", bits=bits, quantizer="absmax", rank=4))
    base, product = oracle.refit(
        W.double().numpy(), stats.x_norm.double().numpy(), bits, n, m, rank=4
    )
    # Float32 against float64, and no weight of this seed lies on the edge between two codes.
    np.testing.assert_allclose((weight.B @ weight.A).double().numpy(), product, atol=1e-4)
    np.testing.assert_allclose(weight.base.dequantize().double().numpy(), base, atol=1e-4)


@pytest.mark.parametrize("quantizer", ["slim-quant", "absmax"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "50%"])
def test_algorithm_2_is_the_three_steps_of_a_recipe(quantizer: str, pattern: str) -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    first = (
        ("slim-quant", {"bits": 4})
        if quantizer == "slim-quant"
        else ("rtn", {"bits": 4, "group_size": "tensor", "scale_dtype": "float32"})
    )
    expected = steps(
        W,
        stats,
        first,
        ("wanda", {"pattern": pattern, "norm": "shifted"}),
        ("slim-lora", {"rank": 0.2}),
    )
    options = {"pattern": pattern, "rank": 0.2, "adapter": "algorithm-2", "quantizer": quantizer}
    assert_same_weight(steps(W, stats, ("slim", options)), expected)


@pytest.mark.parametrize("adapter", ["refit", "algorithm-2"])
def test_the_zeros_are_those_of_wanda_on_the_original_weight(adapter: str) -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    assert stats.x_norm is not None
    base, _ = parts(compress(W, stats, config(adapter=adapter)))
    assert torch.equal(base.mask, wanda.mask(W, wanda.shifted(stats.x_norm), NM(2, 4)))
    assert not base.dequantize()[~base.mask].any()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_refit_leaves_kept_weights_with_quantization_error_only(dtype: str) -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    weight = compress(W, stats, refit(quantizer="absmax", dtype=dtype))
    base, codes = parts(weight)
    error = (weight.dequantize() - W).abs()[base.mask]
    assert float(error.max()) <= float(codes.scale) / 2 * (1 + 1e-4)


def test_refit_searches_the_new_scale_on_the_kept_part_of_the_remainder() -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    weight = compress(W, stats, refit())
    base, codes = parts(weight)
    kept = torch.where(base.mask, W - weight.B @ weight.A, 0.0)
    expected = slim_quant.compress(kept, slim_quant.SlimQuantConfig())
    assert torch.equal(codes.scale, expected.scale)
    assert torch.equal(codes.codes, expected.codes)


def test_refit_and_algorithm_2_share_mask_and_adapter() -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    code, paper = (compress(W, stats, config(adapter=kind)) for kind in ("refit", "algorithm-2"))
    assert torch.equal(parts(code)[0].mask, parts(paper)[0].mask)
    assert torch.equal(code.A, paper.A)
    assert torch.equal(code.B, paper.B)


def test_the_adapter_lowers_the_error_that_it_is_fitted_to() -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    d = slim_lora.saliency(stats, W, "rms")
    paper = compress(W, stats, config(adapter="algorithm-2"))
    code = compress(W, stats, refit())
    without = ((paper.base.dequantize() - W) * d).norm()
    assert ((paper.dequantize() - W) * d).norm() < without
    assert ((code.dequantize() - W) * d).norm() < without


def test_the_papers_algorithm_is_the_default() -> None:
    assert SlimConfig.model_validate({"pattern": "2:4"}).adapter == "algorithm-2"


@pytest.mark.parametrize("adapter", ["refit", "algorithm-2"])
def test_scaling_all_activations_changes_nothing(adapter: str) -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    assert stats.x_norm is not None
    options = config(adapter=adapter, dtype="float16")
    weights = [
        compress(W, LayerStats(x_norm=c * stats.x_norm), options).dequantize() for c in (1, 256)
    ]
    torch.testing.assert_close(weights[0], weights[1], atol=1e-3, rtol=0)


def test_a_layer_of_zeros_stays_zero() -> None:
    for quantizer in ("slim-quant", "absmax"):
        weight = compress(torch.zeros(8, 16), random_stats(16), config(quantizer=quantizer))
        assert not weight.dequantize().any()


def test_inputs_are_left_unchanged() -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    assert stats.x_norm is not None
    before = W.clone(), stats.x_norm.clone()
    compress(W, stats, config())
    assert torch.equal(W, before[0])
    assert torch.equal(stats.x_norm, before[1])


def test_the_same_inputs_give_the_same_bytes() -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    assert_same_weight(compress(W, stats, config()), compress(W, stats, config()))


def test_slim_takes_no_steps_before_it_and_no_missing_norms() -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    with pytest.raises(ConfigError, match=r"slim: .* remove the steps before it"):
        SLIM.compress(W, random_quantized(8, 16, GridCase(4)), stats, config())
    with pytest.raises(ConfigError, match="slim: needs input norms"):
        SLIM.compress(W, Dense(W), LayerStats(), config())


def test_the_pattern_must_divide_the_layer() -> None:
    assert SLIM.problem((8, 18), config()) == "pattern 2:4 does not divide in = 18"
    assert SLIM.problem((8, 16), config()) is None


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ([("wanda", {"pattern": "2:4"}), ("magnitude", {"pattern": "2:4"})], "Prune once"),
        ([("slim-quant", {}), ("rtn", {"group_size": 8})], "Quantize once"),
        ([("slim-lora", {}), ("wanda", {"pattern": "2:4"})], "before the step that adds adapters"),
        ([("slim-lora", {}), ("rtn", {"group_size": 8})], "before the step that adds adapters"),
        ([("slim-lora", {}), ("slim-lora", {})], "already gave this weight adapters"),
        ([("slim", {"pattern": "2:4"}), ("slim-lora", {})], "already gave this weight adapters"),
        ([("dense", {}), ("rtn", {"group_size": 8}), ("slim", {"pattern": "2:4"})], "remove the"),
    ],
)
def test_steps_that_make_no_sense_together_are_refused(
    recipe: list[tuple[str, dict[str, Any]]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        steps(torch.randn(8, 16), random_stats(16), *recipe)


def test_pruning_before_or_after_rounding_gives_the_same_mask() -> None:
    W, stats = torch.randn(8, 16), random_stats(16)
    pruning, rounding = ("wanda", {"pattern": "2:4"}), ("rtn", {"group_size": 8})
    first, last = steps(W, stats, pruning, rounding), steps(W, stats, rounding, pruning)
    assert isinstance(first, Sparse)
    assert isinstance(last, Sparse)
    assert torch.equal(first.mask, last.mask)
