"""methods/sparsegpt.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods import real
from tests.methods.hessians import error, exact, inputs, stats_of
from tests.methods.samples import GridCase, random_quantized
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
    Unstructured,
)
from trinity.methods.sparsegpt import SPARSEGPT, SparseGptConfig

DOUBLE = {"precision": "float64", "scale_dtype": "float32"}
PATTERNS = ["2:4", "1:4", "4:8", "3:16", "50%", "37.5%"]


def prune(W: Tensor, stats: LayerStats, pattern: str, **options: object) -> CompressedWeight:
    data = {"pattern": pattern, **options}
    if "bits" not in data:
        data.pop("scale_dtype", None)
    config = SparseGptConfig.model_validate(data)
    return SPARSEGPT.compress(W, Dense(W), stats, config)


def mask_of(weight: CompressedWeight) -> Tensor:
    assert isinstance(weight, Sparse)
    return weight.mask


def layer(out: int = 6, d_in: int = 48, tokens: int = 96) -> tuple[Tensor, LayerStats]:
    return torch.randn(out, d_in), stats_of(inputs(tokens, d_in))


def damped(stats: LayerStats) -> feedback.Array:
    assert stats.H is not None
    return feedback.damped(exact(stats.H), 0.01)


def oracle_rule(
    pattern: str, H: feedback.Array, block: int, mask: feedback.Mask
) -> feedback.Decide:
    found = solve_pattern(pattern)
    if isinstance(found, NM):
        return feedback.nm_rule(H, found.n, found.m, mask)
    return feedback.block_rule(H, found.sparsity, block, mask)


def solve_pattern(pattern: str) -> NM | Unstructured:
    found = SparseGptConfig.model_validate({"pattern": pattern}).pattern
    assert found is not None
    return found


@pytest.mark.parametrize("panel", [8, 128])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_equals_optimal_brain_surgery_column_by_column(
    pattern: str, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solve, "PANEL", panel)
    W, stats = layer()
    H, mask = damped(stats), np.zeros(W.shape, dtype=bool)
    expected = feedback.sweep(exact(W), H, oracle_rule(pattern, H, 16, mask))
    found = prune(W, stats, pattern, block_size=16, **DOUBLE)
    np.testing.assert_array_equal(mask_of(found).numpy(), mask)
    np.testing.assert_allclose(found.dequantize().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("panel", [8, 128])
@pytest.mark.parametrize(
    ("pattern", "group", "symmetric"),
    [("2:4", "channel", False), ("2:4", 16, False), ("50%", "channel", True), ("50%", 8, False)],
)
def test_with_bits_every_kept_weight_is_rounded_in_the_same_sweep(
    pattern: str, group: int | str, symmetric: bool, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solve, "PANEL", panel)
    W, stats = layer()
    H, mask = damped(stats), np.zeros(W.shape, dtype=bool)
    choose = oracle_rule(pattern, H, 16, mask)
    size = group if isinstance(group, int) else W.shape[1]
    dense = exact(W)
    seen = feedback.lagging(16) if isinstance(group, int) else (lambda j, now: dense)
    settle = feedback.grid_rule(4, size, seen, mask, symmetric=symmetric)

    def decide(j: int, now: feedback.Array) -> feedback.Array:
        choose(j, now)
        return settle(j, now)

    expected = feedback.sweep(exact(W), H, decide)
    options = {"bits": 4, "group_size": group, "symmetric": symmetric, "block_size": 16}
    found = prune(W, stats, pattern, **DOUBLE, **options)
    np.testing.assert_array_equal(mask_of(found).numpy(), mask)
    np.testing.assert_allclose(found.dequantize().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if ":" in p])
def test_every_group_of_every_row_keeps_exactly_n(pattern: str) -> None:
    W, stats = layer()
    found = solve_pattern(pattern)
    assert isinstance(found, NM)
    kept = mask_of(prune(W, stats, pattern)).view(6, 48 // found.m, found.m).sum(-1)
    assert (kept == found.n).all()


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.66, 0.97])
def test_every_block_loses_exactly_the_floor_of_its_share(sparsity: float) -> None:
    W, stats = layer(5, 40)
    kept = mask_of(prune(W, stats, f"{100 * sparsity:g}%", block_size=16))
    for block in kept.split(16, dim=1):
        assert (~block).sum() == int(block.numel() * sparsity)


@pytest.mark.parametrize("pattern", ["2:4", "50%"])
def test_uncorrelated_equal_inputs_give_magnitude_pruning_without_updates(pattern: str) -> None:
    W = torch.randn(6, 48)
    found = prune(W, LayerStats(tokens=9, H=3 * torch.eye(48)), pattern, block_size=16)
    assert torch.equal(found.dequantize(), torch.where(mask_of(found), W, 0))
    if pattern == "2:4":
        lowest = W.abs().view(6, 12, 4).topk(2, largest=False).indices
        assert not mask_of(found).view(6, 12, 4).gather(2, lowest).any()
        return
    for weights, kept in zip(W.split(16, 1), mask_of(found).split(16, 1), strict=True):
        assert weights[kept].abs().min() > weights[~kept].abs().max()


def real_layers(stories260k: Path) -> dict[str, tuple[Tensor, Tensor]]:
    names = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.2.mlp.down_proj",
        "model.layers.4.mlp.gate_proj",
    ]
    return real.layers(stories260k, names)


def check_errors(W: Tensor, stats: LayerStats, pattern: str) -> None:
    """Not better than the best values under its mask, better than clearing under its mask."""
    assert stats.H is not None
    found = prune(W, stats, pattern)
    mask, H = mask_of(found), exact(stats.H) + 1e-12 * np.eye(W.shape[1])
    best = feedback.masked_least_squares(exact(W), H, mask.numpy())
    least = feedback.layer_error(best - exact(W), H)
    ours = error(W, found.dequantize(), stats)
    cleared = error(W, torch.where(mask, W, 0), stats)
    assert least * (1 - 1e-6) <= ours < cleared


@pytest.mark.parametrize("pattern", ["2:4", "50%"])
def test_the_error_lies_between_the_best_values_under_the_mask_and_clearing(pattern: str) -> None:
    W, stats = layer(12, 64, 200)
    check_errors(W, stats, pattern)


@pytest.mark.parametrize("pattern", ["2:4", "50%"])
def test_the_same_holds_on_real_layers(stories260k: Path, pattern: str) -> None:
    for W, X in real_layers(stories260k).values():
        check_errors(W, stats_of(X), pattern)


def test_it_equals_the_oracle_on_a_real_layer(stories260k: Path) -> None:
    W, X = real_layers(stories260k)["model.layers.2.mlp.down_proj"]
    W, stats = W[:16], stats_of(X)
    H, mask = damped(stats), np.zeros(W.shape, dtype=bool)
    expected = feedback.sweep(exact(W), H, feedback.nm_rule(H, 2, 4, mask))
    found = prune(W, stats, "2:4")
    agreement = (mask_of(found).numpy() == mask).mean()
    assert agreement > 0.999  # float32 may turn a near tie
    assert error(W, found.dequantize(), stats) == pytest.approx(
        error(W, torch.from_numpy(expected), stats), rel=1e-3
    )


@pytest.mark.parametrize("panel", [4, 16, 128])
def test_nm_results_do_not_depend_on_the_block_size(
    panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    W, stats = layer()
    expected = prune(W, stats, "2:4", block_size=48).dequantize()
    monkeypatch.setattr(solve, "PANEL", panel)
    found = prune(W, stats, "2:4", block_size=5).dequantize()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_unstructured_masks_do_depend_on_it() -> None:
    W, stats = layer()
    masks = [mask_of(prune(W, stats, "50%", block_size=size)) for size in (8, 48)]
    assert not torch.equal(*masks)


@pytest.mark.parametrize("pattern", ["2:4", "50%"])
def test_permuting_rows_permutes_the_result(pattern: str) -> None:
    W, stats = layer()
    rows = torch.randperm(6)
    found = prune(W[rows], stats, pattern).dequantize()
    assert torch.allclose(found, prune(W, stats, pattern).dequantize()[rows], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pattern", ["0%", "0.00%"])
def test_zero_percent_returns_the_weight_bit_for_bit(pattern: str) -> None:
    W, stats = layer()
    assert stats.H is not None
    stats.H[3] = 0
    stats.H[:, 3] = 0
    current = Dense(W.bfloat16())
    config = SparseGptConfig.model_validate({"pattern": pattern})
    assert SPARSEGPT.compress(W, current, stats, config) is current


def test_zero_percent_with_bits_is_gptq() -> None:
    W, stats = layer()
    options = {"bits": 4, "group_size": 16}
    gptq = registry.get("gptq")
    expected = gptq.compress(W, Dense(W), stats, registry.configure("gptq", options))
    found = prune(W, stats, "0%", **options)
    assert isinstance(found, Quantized)
    assert torch.equal(found.codes, expected.codes)


def test_options_of_a_grid_without_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match="group_size, symmetric has no effect without `bits`"):
        registry.configure("sparsegpt", {"pattern": "2:4", "group_size": 64, "symmetric": True})


def test_runs_that_do_not_nest_are_a_problem() -> None:
    config = SparseGptConfig.model_validate({"pattern": "2:4", "bits": 4, "group_size": 6})
    assert "128 and 6 columns do not nest" in str(SPARSEGPT.problem((4, 24), config))


def test_what_is_not_dense_is_refused_with_what_to_do() -> None:
    W, stats = layer()
    config = SparseGptConfig.model_validate({"pattern": "2:4"})
    for current in (random_quantized(6, 48, GridCase(4)), prune(W, stats, "2:4")):
        with pytest.raises(ConfigError, match=r"sparsegpt: an earlier step.*Prune first"):
            SPARSEGPT.compress(W, current, stats, config)
    with pytest.raises(ConfigError, match="sparsegpt: needs input statistics"):
        SPARSEGPT.compress(W, Dense(W), LayerStats(), config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_pruned_in_float32_and_stored_in_their_type(
    dtype: torch.dtype,
) -> None:
    W, stats = layer()
    W = W.to(dtype)
    config = SparseGptConfig.model_validate({"pattern": "2:4"})
    found = SPARSEGPT.compress(W.float(), Dense(W), stats, config)
    assert isinstance(found, Sparse)
    assert isinstance(found.values, Dense)
    assert found.values.values.dtype == dtype
    wide = prune(W.float(), stats, "2:4")
    assert torch.equal(found.mask, mask_of(wide))
    assert torch.equal(found.dequantize(), wide.dequantize().to(dtype).float())


@pytest.mark.parametrize("pattern", ["2:4", "50%"])
@pytest.mark.parametrize("bits", [None, 4])
def test_dead_inputs_are_pruned_first_and_store_zero(pattern: str, bits: int | None) -> None:
    X = inputs(96, 48)
    X[:, [4, 5, 21]] = 0
    W = torch.randn(6, 48)
    found = prune(W, stats_of(X), pattern, bits=bits, block_size=16)
    assert not mask_of(found)[:, [4, 5, 21]].any()
    assert not found.dequantize()[:, [4, 5, 21]].any()


def check_degenerate(W: Tensor, X: Tensor) -> None:
    """A finite result of the right pattern that is no worse than removing everything."""
    stats = stats_of(X)
    for pattern in ("2:4", "50%"):
        for bits in (None, 4):
            found = prune(W, stats, pattern, bits=bits, block_size=16)
            assert torch.isfinite(found.dequantize()).all()
            assert mask_of(found).float().mean() == 0.5
            # The published damping is part of what is minimized.
            assert error(W, found.dequantize(), stats) <= 1.5 * error(W, 0 * W, stats) + 1e-6


def test_fewer_tokens_than_inputs_and_one_token_have_a_finite_answer() -> None:
    W = torch.randn(6, 48)
    for tokens in (1, 7):
        check_degenerate(W, inputs(tokens, 48))


def test_zero_rows_constant_weights_and_dead_layers_have_a_finite_answer() -> None:
    W = torch.randn(6, 48)
    W[2] = 0
    X = inputs(96, 48)
    check_degenerate(W, X)
    assert not prune(W, stats_of(X), "2:4").dequantize()[2].any()
    for degenerate in (torch.zeros(6, 48), torch.full((6, 48), 0.25), torch.randn(1, 48)):
        check_degenerate(degenerate, X)
    check_degenerate(W, torch.zeros(5, 48))


def test_one_column_can_only_be_kept_or_removed() -> None:
    W, stats = torch.tensor([[3.0], [1.0]]), stats_of(torch.randn(9, 1))
    assert prune(W, stats, "50%").dequantize().tolist() == [[3.0], [0.0]]


def test_sharing_a_factor_changes_no_bit() -> None:
    (W, stats), V = layer(), torch.randn(4, 48)
    alone = prune(V, stats_of_same(stats), "2:4")
    prune(W, stats, "2:4")
    assert torch.equal(prune(V, stats, "2:4").dequantize(), alone.dequantize())


def stats_of_same(stats: LayerStats) -> LayerStats:
    return LayerStats(tokens=stats.tokens, H=stats.H)


def test_inputs_are_left_unchanged() -> None:
    W, stats = layer()
    assert stats.H is not None
    before = W.clone(), stats.H.clone()
    prune(W, stats, "50%", bits=4)
    assert torch.equal(W, before[0])
    assert torch.equal(stats.H, before[1])
