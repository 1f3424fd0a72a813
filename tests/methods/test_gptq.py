"""methods/gptq.py and methods/grids.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods import real
from tests.methods.hessians import error, exact, inputs, stats_of
from tests.methods.samples import GridCase, random_mask, random_quantized, with_adapter
from tests.oracles import feedback
from trinity.methods import registry, solve
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    NM,
    CompressedWeight,
    Dense,
    Quantized,
    Sparse,
    format_of,
    pack,
    unpack,
)
from trinity.methods.gptq import GPTQ, GptqConfig

DOUBLE: dict[str, Any] = {"precision": "float64", "scale_dtype": "float32"}


def quantized(
    W: Tensor, stats: LayerStats, current: CompressedWeight | None = None, **options: Any
) -> CompressedWeight:
    config = GptqConfig.model_validate({"group_size": 16, **options})
    return GPTQ.compress(W, current or Dense(W), stats, config)


def layer(out: int = 6, d_in: int = 48, tokens: int = 96) -> tuple[Tensor, LayerStats]:
    return torch.randn(out, d_in), stats_of(inputs(tokens, d_in))


def damped(stats: LayerStats) -> feedback.Array:
    assert stats.H is not None
    return feedback.damped(exact(stats.H), 0.01)


def compensated(j: int, W: feedback.Array) -> feedback.Array:
    """Weights as they are now."""
    return W


def always(W: feedback.Array) -> Any:
    """Weights as they were before anything moved."""
    return lambda j, now: W


def assert_close(found: CompressedWeight, expected: feedback.Array) -> None:
    np.testing.assert_allclose(found.dequantize().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("panel", [8, 128])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_fit", ["reference", "compensated", "static"])
@pytest.mark.parametrize("group", [4, 16, 24, "channel"])
def test_it_equals_optimal_brain_surgery_column_by_column(
    group: int | str,
    group_fit: str,
    symmetric: bool,
    panel: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(solve, "PANEL", panel)
    W, stats = layer()
    block = 8 if group == 24 else 16
    seen = {
        "reference": feedback.lagging(block),
        "compensated": compensated,
        "static": always(exact(W)),
    }[group_fit]
    size = group if isinstance(group, int) else W.shape[1]
    rule = feedback.grid_rule(3, size, seen, symmetric=symmetric)
    options = {"bits": 3, "group_size": group, "group_fit": group_fit, "symmetric": symmetric}
    found = quantized(W, stats, **options, **DOUBLE, block_size=block)
    assert_close(found, feedback.sweep(exact(W), damped(stats), rule))


def test_per_tensor_one_grid_serves_every_row() -> None:
    W, stats = layer()
    scale, zero = feedback.row_grid(exact(W).reshape(-1), 4, symmetric=False)

    def decide(j: int, now: feedback.Array) -> feedback.Array:
        return np.array(
            [feedback.rounded(float(w), scale, zero, 4, symmetric=False) for w in now[:, j]]
        )

    found = quantized(W, stats, group_size="tensor", **DOUBLE)
    assert_close(found, feedback.sweep(exact(W), damped(stats), decide))
    assert format_of(found).label == "int4 tensor asymmetric"


def test_the_two_readings_of_the_refit_differ_inside_a_block_and_agree_on_whole_blocks() -> None:
    W, stats = layer()
    readings = ("reference", "compensated")
    for block, same in ((48, False), (16, True)):
        one, other = (
            quantized(W, stats, group_fit=reading, block_size=block).dequantize()
            for reading in readings
        )
        assert torch.equal(one, other) == same


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_searched_range_equals_trying_every_share(symmetric: bool) -> None:
    W, stats = layer(4, 32)
    rule = feedback.grid_rule(
        3, 16, always(exact(W)), symmetric=symmetric, fit=feedback.searched_grid
    )
    options = {"bits": 3, "search": "mse", "group_fit": "static", "symmetric": symmetric}
    found = quantized(W, stats, **options, **DOUBLE)
    assert_close(found, feedback.sweep(exact(W), damped(stats), rule))


@pytest.mark.parametrize("group_fit", ["compensated", "static"])
def test_act_order_is_the_sweep_over_permuted_inputs(group_fit: str) -> None:
    W, stats = layer()
    assert stats.H is not None
    order = np.argsort(-np.diag(exact(stats.H)), kind="stable")
    H = damped(stats)[np.ix_(order, order)]
    dense = exact(W)
    if group_fit == "compensated":
        rule = feedback.grid_rule(4, 16, compensated)
    else:
        grids = {
            g: [feedback.row_grid(row, 4, symmetric=False) for row in dense[:, g : g + 16]]
            for g in (0, 16, 32)
        }

        def rule(j: int, now: feedback.Array) -> feedback.Array:
            own = grids[order[j] // 16 * 16]
            pairs = zip(now[:, j], own, strict=True)
            return np.array(
                [feedback.rounded(float(w), *grid, 4, symmetric=False) for w, grid in pairs]
            )

    expected = np.zeros_like(dense)
    expected[:, order] = feedback.sweep(dense[:, order], H, rule)
    found = quantized(W, stats, act_order=True, group_fit=group_fit, **DOUBLE)
    assert_close(found, expected)
    assert isinstance(found, Quantized)
    if group_fit == "static":
        assert found.group_index is None
    else:
        assert found.group_index is not None
        groups = found.group_index.numpy()[order]
        np.testing.assert_array_equal(groups, np.arange(48) // 16)


def test_act_order_without_groups_needs_no_index() -> None:
    W, stats = layer()
    found = quantized(W, stats, act_order=True, group_size="channel")
    assert format_of(found).label == "int4 channel asymmetric"


@pytest.mark.parametrize("group_fit", ["reference", "compensated", "static"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_diagonal_hessian_gives_round_to_nearest(group_fit: str, symmetric: bool) -> None:
    W = torch.randn(6, 48)
    stats = LayerStats(tokens=9, H=torch.diag(torch.rand(48) + 0.1))
    rule = feedback.grid_rule(4, 16, always(exact(W)), symmetric=symmetric)
    expected = np.stack([rule(j, exact(W)) for j in range(48)], axis=1)
    options = {"group_fit": group_fit, "symmetric": symmetric, **DOUBLE}
    assert_close(quantized(W, stats, **options), expected)
    if group_fit == "static":
        assert_close(quantized(W, stats, act_order=True, **options), expected)


def test_every_value_is_on_the_grid_of_its_row_and_group() -> None:
    W, stats = layer()
    for bits in (2, 3, 4, 8):
        found = quantized(W, stats, bits=bits).dequantize()
        for group in found.view(6, 3, 16).flatten(0, 1):
            assert len(group.unique()) <= 2**bits


def check_better_than_rounding(W: Tensor, stats: LayerStats, **options: Any) -> None:
    found = quantized(W, stats, bits=3, **options).dequantize()
    assert stats.H is not None
    diagonal = LayerStats(tokens=stats.tokens, H=torch.eye(W.shape[1]))
    nearest = quantized(W, diagonal, bits=3, **options).dequantize()
    assert error(W, found, stats) < error(W, nearest, stats)


@pytest.mark.parametrize("group_fit", ["reference", "compensated", "static"])
def test_the_layer_error_is_below_that_of_round_to_nearest(group_fit: str) -> None:
    W, stats = layer(24, 64, 200)
    check_better_than_rounding(W, stats, group_fit=group_fit)
    check_better_than_rounding(W, stats, group_fit=group_fit, act_order=True)


NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.3.mlp.gate_proj"]


@pytest.mark.parametrize("act_order", [False, True])
def test_it_is_so_on_real_layers_too(stories260k: Path, act_order: bool) -> None:
    for W, X in real.layers(stories260k, NAMES).values():
        check_better_than_rounding(W, stats_of(X), act_order=act_order)
        check_better_than_rounding(W, stats_of(X), act_order=act_order, group_size="channel")


def test_it_equals_the_oracle_on_a_real_layer(stories260k: Path) -> None:
    W, X = real.layers(stories260k, NAMES)[NAMES[0]]
    W, stats = W[:16], stats_of(X)
    rule = feedback.grid_rule(4, 16, feedback.lagging(128))
    expected = feedback.sweep(exact(W), damped(stats), rule)
    assert_close(quantized(W, stats, **DOUBLE), expected)


def test_the_result_does_not_depend_on_the_block_size_when_a_row_is_one_group() -> None:
    W, stats = layer()
    one, other = (
        quantized(W, stats, group_size="channel", block_size=size, **DOUBLE) for size in (5, 48)
    )
    assert torch.equal(one.dequantize(), other.dequantize())


def test_more_bits_come_closer_to_the_weight() -> None:
    W, stats = layer()
    errors = [error(W, quantized(W, stats, bits=bits).dequantize(), stats) for bits in (2, 3, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


@pytest.mark.parametrize("target", ["current", "original"])
@pytest.mark.parametrize("earlier", ["wanda", "sparsegpt"])
def test_a_pruned_weight_keeps_its_mask(earlier: str, target: str) -> None:
    W, stats = layer()
    assert stats.H is not None
    stats = LayerStats(tokens=96, H=stats.H, x_norm=stats.H.diagonal().sqrt())
    pruner = registry.get(earlier)
    pruned = pruner.compress(W, Dense(W), stats, registry.configure(earlier, {"pattern": "2:4"}))
    found = quantized(W, stats, pruned, target=target, **DOUBLE)
    assert isinstance(found, Sparse)
    assert isinstance(found.values, Quantized)
    assert torch.equal(found.mask, pruned.mask)
    start = exact(W if target == "original" else pruned.dequantize())
    rule = feedback.grid_rule(4, 16, feedback.lagging(128), found.mask.numpy())
    assert_close(found, feedback.sweep(start, damped(stats), rule))


def test_act_order_keeps_a_mask_too() -> None:
    W, stats = layer()
    pattern = NM(2, 4)
    pruned = Sparse(Dense(W), random_mask(6, 48, pattern), pattern)
    found = quantized(W, stats, pruned, act_order=True)
    assert torch.equal(found.dequantize() != 0, pruned.mask & (found.dequantize() != 0))
    nearest = quantized(W, LayerStats(H=torch.eye(48)), pruned, act_order=True)
    target = pruned.dequantize()
    assert error(target, found.dequantize(), stats) < error(target, nearest.dequantize(), stats)
    assert torch.equal(unpack(format_of(found), pack(found)).dequantize(), found.dequantize())


def test_making_up_for_the_pruning_lowers_the_error_against_the_original() -> None:
    W, stats = layer(24, 64, 200)
    pattern = NM(2, 4)
    pruned = Sparse(Dense(W), random_mask(24, 64, pattern), pattern)
    current, original = (
        quantized(W, stats, pruned, target=target).dequantize()
        for target in ("current", "original")
    )
    assert error(W, original, stats) < error(W, current, stats)


def test_what_is_quantized_or_adapted_already_is_refused() -> None:
    W, stats = layer()
    done = random_quantized(6, 48, GridCase(4))
    for current in (done, with_adapter(done, 2, torch.float16)):
        with pytest.raises(ConfigError, match=r"gptq: an earlier step.*Quantize once"):
            quantized(W, stats, current)
    with pytest.raises(ConfigError, match="gptq: needs input statistics"):
        quantized(W, LayerStats())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"group_size": 32}, "group_size 32 does not divide in = 48"),
        ({"group_size": 24}, "128 and 24 columns do not nest"),
        ({"group_size": 24, "group_fit": "compensated"}, None),
        ({"group_size": 32, "ragged": "channel"}, None),
    ],
)
def test_groups_that_do_not_fit_are_a_problem(options: dict[str, Any], problem: str | None) -> None:
    W, stats = layer()
    found = GPTQ.problem((6, 48), GptqConfig.model_validate(options))
    assert problem is None if found is None else str(problem) in found
    if problem is not None:
        with pytest.raises(ConfigError, match=problem):
            quantized(W, stats, **options)
    elif "ragged" in options:
        assert format_of(quantized(W, stats, **options)).label == "int4 channel asymmetric"


def test_scales_are_rounded_before_codes_are_computed() -> None:
    W, stats = layer()
    for name in ("float16", "bfloat16"):
        found = quantized(W, stats, scale_dtype=name, bits=8)
        assert isinstance(found, Quantized)
        # With any other scale some residual would exceed what feedback leaves at the last column.
        last = found.dequantize()[:, -1]
        steps = last / found.scale.float()[:, -1]
        assert torch.allclose(steps, steps.round(), atol=1e-3)


def test_weights_too_small_for_the_type_of_the_scale_are_refused() -> None:
    W, stats = layer()
    with pytest.raises(ConfigError, match="store scales as float32"):
        quantized(1e-9 * W, stats)


def test_one_sided_groups_use_the_whole_symmetric_range() -> None:
    W = torch.rand(6, 16) + 0.5
    found = quantized(W, LayerStats(H=torch.eye(16)), symmetric=True)
    assert (found.dequantize() - W).abs().max() < 0.11 * W.max()


def check_degenerate(W: Tensor, X: Tensor) -> None:
    stats = stats_of(X)
    for options in ({}, {"symmetric": True, "act_order": True}, {"search": "mse"}):
        found = quantized(W, stats, **options).dequantize()
        assert torch.isfinite(found).all()
        assert error(W, found, stats) <= error(W, 0 * W, stats) + 1e-6


def test_fewer_tokens_than_inputs_and_one_token_have_a_finite_answer() -> None:
    W = torch.randn(6, 48)
    for tokens in (1, 7):
        check_degenerate(W, inputs(tokens, 48))


def test_zero_rows_constant_weights_and_dead_layers_have_a_finite_answer() -> None:
    W, X = torch.randn(6, 48), inputs(96, 48)
    W[2] = 0
    X[:, 5] = 0
    check_degenerate(W, X)
    found = quantized(W, stats_of(X)).dequantize()
    assert not found[2].any()
    assert not found[:, 5].any()
    for degenerate in (torch.zeros(6, 48), torch.full((6, 48), 0.25), torch.randn(1, 48)):
        check_degenerate(degenerate, X)
    check_degenerate(W, torch.zeros(5, 48))
    check_degenerate(torch.randn(3, 16), torch.randn(9, 16))


def test_one_column_is_rounded() -> None:
    W, stats = torch.tensor([[3.0], [-1.0]]), stats_of(torch.randn(9, 1))
    found = quantized(W, stats, group_size="channel", bits=4)
    assert torch.allclose(found.dequantize(), W, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_quantized_in_float32(dtype: torch.dtype) -> None:
    W, stats = layer()
    W = W.to(dtype)
    found = quantized(W.float(), stats, Dense(W))
    assert torch.equal(found.dequantize(), quantized(W.float(), stats).dequantize())


def test_inputs_are_left_unchanged() -> None:
    W, stats = layer()
    assert stats.H is not None
    before = W.clone(), stats.H.clone()
    quantized(W, stats, act_order=True, search="mse")
    assert torch.equal(W, before[0])
    assert torch.equal(stats.H, before[1])
