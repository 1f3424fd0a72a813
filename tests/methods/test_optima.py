"""methods/optima.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.methods.optima_layers import degenerate, errors, inputs, least, pruned, run, stats_of
from tests.methods.samples import GridCase, random_mask, random_quantized, with_adapter
from tests.oracles.masked import best_in_box, best_kept
from trinity.methods import box_qp, magnitude, mxfp4, nvfp4, registry, slim, tensors
from trinity.methods.contract import LayerStats, Reported
from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    NM,
    Adapted,
    Dense,
    Pattern,
    Sparse,
    Unstructured,
    format_of,
)
from trinity.methods.optima import OPTIMA, OptimaConfig, reference

PATTERNS = [NM(2, 4), NM(1, 4), Unstructured(0.5)]
STORIES = "Once upon a time there was a little dog who lived near the river. One day he ran away. "


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_row_has_the_least_error_of_its_mask(pattern: Pattern) -> None:
    W, X = torch.randn(10, 32), inputs(200, 32)
    current = pruned(W, X, pattern)
    weight, _ = run(W, current, X)
    assert torch.equal(weight.mask, current.mask)
    assert (weight.dequantize()[~current.mask] == 0).all()
    assert (errors(weight, W, X) <= 1.0011 * least(W, current.mask, X)).all()


@pytest.mark.parametrize("pruner", ["wanda", "magnitude", "stranger"])
@pytest.mark.parametrize("variant", ["exact", "reference"])
def test_no_layer_ends_worse_than_the_mask_alone_or_than_it_came(pruner: str, variant: str) -> None:
    W, X = torch.randn(10, 32), inputs(200, 32)
    if pruner == "wanda":
        current = pruned(W, X, NM(2, 4))
    else:
        kept = magnitude.mask(W, NM(2, 4))
        # As after SparseGPT: kept weights that some other rule has changed already.
        current = Sparse(Dense(W + 0.1 * (pruner == "stranger")), kept, NM(2, 4))
    weight, report = run(W, current, X, variant=variant)
    masked = errors(W * current.mask, W, X)
    if variant == "exact":
        best = np.minimum(masked, errors(current, W, X))
        assert (errors(weight, W, X) <= best * (1 + 1e-6)).all()
        assert report["error_after"] < 0.95 * report["error_masked"]
    assert errors(weight, W, X).sum() <= masked.sum() * (1 + 1e-6)
    assert errors(weight, W, X).sum() <= errors(current, W, X).sum() * (1 + 1e-6)


def test_the_best_weights_stay_where_they_are() -> None:
    W, X = torch.randn(10, 32), inputs(200, 32)
    mask = random_mask(10, 32, NM(2, 4))
    best = torch.from_numpy(best_kept(W.double().numpy(), mask.numpy(), X.double().numpy())).float()
    weight, report = run(W, Sparse(Dense(best), mask, NM(2, 4)), X)
    torch.testing.assert_close(weight.dequantize(), best, rtol=1e-4, atol=1e-4)
    assert report["error_after"] <= report["error_before"]


def test_diagonal_statistics_leave_the_masked_weight() -> None:
    W, mask = torch.randn(6, 16), random_mask(6, 16, NM(2, 4))
    current = Sparse(Dense(W), mask, NM(2, 4))
    stats = LayerStats(tokens=9, H=torch.diag(torch.rand(16) + 0.1))
    made = OPTIMA.compress(W, current, stats, OptimaConfig())
    assert isinstance(made, Reported)
    torch.testing.assert_close(made.weight.dequantize(), W * mask)


def test_a_weight_that_nothing_was_removed_from_is_returned() -> None:
    W, X = torch.randn(6, 16), inputs(50, 16)
    current = Dense(W)
    assert OPTIMA.compress(W, current, stats_of(X), OptimaConfig()) is current


def test_the_report_tells_errors_as_they_are() -> None:
    W, X = torch.randn(40, 32), inputs(200, 32)
    current = pruned(W, X, NM(2, 4))
    weight, report = run(W, current, X)
    norm = errors(torch.zeros_like(W), W, X).sum()
    for name, total in {
        "error_before": errors(current, W, X).sum(),
        "error_masked": errors(W * current.mask, W, X).sum(),
        "error_after": errors(weight, W, X).sum(),
    }.items():
        assert report[name] == pytest.approx((total / norm) ** 0.5, rel=1e-4), name
    floor = (least(W, current.mask, X).sum() / norm) ** 0.5
    assert report["error_at_least"] <= floor * (1 + 1e-6)
    assert report["error_at_least"] > 0.999 * report["error_after"]
    assert report["gap"] <= 1e-3
    assert report["rows_not_converged"] == report["rows_kept"] == 0
    assert report["rows"] == 40


def test_a_smaller_tolerance_is_nearer_the_minimum() -> None:
    W, X = torch.randn(10, 64), inputs(300, 64)
    current, above = pruned(W, X, NM(2, 4)), []
    for tolerance in (0.5, 1e-2, 1e-5):
        weight, report = run(W, current, X, tolerance=tolerance)
        assert report["gap"] <= tolerance
        above.append(errors(weight, W, X).sum() / least(W, current.mask, X).sum() - 1)
        assert above[-1] <= tolerance
    assert above[0] > above[1] > above[2]


def test_an_adapter_is_kept_and_the_rest_is_what_is_solved_for() -> None:
    W, X = torch.randn(10, 32), inputs(200, 32)
    current = with_adapter(pruned(W, X, NM(2, 4)), 3, torch.float16)
    weight, _ = run(W, current, X)
    assert isinstance(weight, Adapted)
    assert weight.A is current.A
    assert weight.B is current.B
    assert isinstance(weight.base, Sparse)
    target = W - current.B.float() @ current.A.float()
    assert torch.equal(weight.base.mask, current.base.mask)
    best = least(target, weight.base.mask, X)
    assert (errors(weight, W, X) <= 1.0012 * best).all()


def test_after_slim_the_layer_is_better_than_slim() -> None:
    W, X = torch.randn(32, 64), inputs(300, 64)
    stats = stats_of(X)
    current = slim.compress(W, stats, slim.SlimConfig(pattern=NM(2, 4)))
    weight, report = run(W, current, X)
    assert errors(weight, W, X).sum() < errors(current, W, X).sum()
    assert weight.base.values.grid == current.base.values.grid
    assert report["error_at_least"] < report["error_after"] < report["error_before"]


@pytest.mark.parametrize(
    "case", [GridCase(4), GridCase(3, False, 3), GridCase(8, True, 1)], ids=str
)
def test_a_quantized_weight_stays_on_its_grid_and_loses_no_row(case: GridCase) -> None:
    W, X = torch.randn(12, 24), inputs(200, 24)
    grid = random_quantized(12, 24, case)
    base = tensors.quantize(W, grid.scale, grid.zero_point, grid.bits)
    current = pruned(W, X, NM(2, 4), base)
    weight, _ = run(W, current, X)
    assert torch.equal(weight.values.scale, base.scale)
    assert weight.values.bits == case.bits
    assert (errors(weight, W, X) <= errors(current, W, X) * (1 + 1e-6)).all()
    assert errors(weight, W, X).sum() < 0.95 * errors(current, W, X).sum()


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
def test_a_weight_of_a_table_stays_under_its_scales_and_loses_no_row(name: str) -> None:
    W, X = torch.randn(12, 32), inputs(200, 32)
    base = {"mxfp4": mxfp4.compress, "nvfp4": nvfp4.compress}[name](W)
    current = pruned(W, X, NM(2, 4), base)
    weight, _ = run(W, current, X)
    assert torch.equal(weight.values.scales(), base.scales())
    assert format_of(weight) == format_of(current)
    assert (errors(weight, W, X) <= errors(current, W, X) * (1 + 1e-6)).all()
    assert errors(weight, W, X).sum() < 0.95 * errors(current, W, X).sum()


def test_a_quantized_weight_without_a_mask_is_refused() -> None:
    W, X = torch.randn(4, 16), inputs(50, 16)
    quantized = random_quantized(4, 16, GridCase(4))
    for current in (quantized, with_adapter(quantized, 2, torch.float32)):
        with pytest.raises(ConfigError, match=r"optima: the weight has no mask.*such as wanda"):
            OPTIMA.compress(W, current, stats_of(X), OptimaConfig())


def test_missing_statistics_are_refused() -> None:
    W = torch.randn(4, 16)
    with pytest.raises(ConfigError, match="optima: needs the inputs' second moments"):
        OPTIMA.compress(W, Dense(W), LayerStats(), OptimaConfig())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_solved_in_float32_and_judged_as_stored(
    dtype: torch.dtype,
) -> None:
    W, X = torch.randn(10, 32).to(dtype).float(), inputs(200, 32)
    current = pruned(W, X, NM(2, 4), Dense(W.to(dtype)))
    weight, _ = run(W, current, X)
    assert weight.values.values.dtype == dtype
    assert (errors(weight, W, X) <= errors(current, W, X) * (1 + 1e-6)).all()
    assert errors(weight, W, X).sum() < 1.02 * least(W, weight.mask, X).sum()


@pytest.mark.parametrize(("W", "X"), list(degenerate()))
@pytest.mark.parametrize("variant", ["exact", "reference"])
def test_degenerate_layers_have_a_result_no_worse_than_the_mask(
    W: Tensor, X: Tensor, variant: str
) -> None:
    mask = random_mask(W.shape[0], W.shape[1], NM(2, 4) if W.shape[1] > 1 else Unstructured(0.5))
    pattern = NM(2, 4) if W.shape[1] > 1 else Unstructured(0.5)
    weight, report = run(W, Sparse(Dense(W), mask, pattern), X, variant=variant)
    assert torch.isfinite(weight.dequantize()).all()
    assert all(np.isfinite(v) for v in report.values() if not isinstance(v, str))
    before = errors(W * mask, W, X).sum()
    assert errors(weight, W, X).sum() <= before * (1 + 1e-5)
    if variant == "exact":
        dense = errors(torch.zeros_like(W), W, X).sum()
        floor = least(W, mask, X).sum()
        assert errors(weight, W, X).sum() <= 1.01 * floor + 1e-5 * dense


@pytest.mark.parametrize("rank", [1, 4])
def test_a_layer_without_error_reports_none_rather_than_rounding_below_zero(rank: int) -> None:
    torch.manual_seed(0)
    W, X = torch.randn(32, 64), torch.randn(64, rank) @ torch.randn(rank, 64)
    _, details = run(W, pruned(W, X, NM(2, 4)), X)
    assert isinstance(details["error_after"], float)
    assert 0 <= details["error_after"] < 1e-3 < details["error_before"]


def test_the_reference_solves_the_published_box() -> None:
    W, X = torch.randn(4, 16), inputs(100, 16)
    mask = random_mask(4, 16, NM(2, 4))
    H = stats_of(X).H
    assert H is not None
    found = box_qp.solve(
        H.double() / 2,
        torch.where(mask, -torch.inf, -W).double(),
        torch.where(mask, torch.inf, 1e-4 - W).double(),
        1e-9,
        100_000,
    )
    attempt = reference(W, mask, H, 1e-4)
    for i in range(4):
        low = torch.where(mask[i], -torch.inf, -W[i]).double().numpy()
        high = torch.where(mask[i], torch.inf, 1e-4 - W[i]).double().numpy()
        d = best_in_box(X.double().numpy() / len(X) ** 0.5, low, high)
        np.testing.assert_allclose(found.d[i].numpy(), d, atol=1e-4)
        expected = (W[i].double().numpy() + d) * mask[i].numpy()
        # The weight and its change are rounded to bfloat16, as published.
        np.testing.assert_allclose(attempt.w[i].double().numpy(), expected, atol=0.04)
    assert torch.equal(attempt.w, attempt.w.bfloat16().float())


def test_the_reference_keeps_the_mask_when_too_few_rows_converge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    W, X = torch.randn(20, 32), inputs(100, 32)
    monkeypatch.setitem(registry.get("optima").compress.__globals__["ITERATIONS"], "reference", 1)
    current = pruned(W, X, NM(2, 4))
    weight, report = run(W, current, X, variant="reference", tolerance=1e-9)
    assert report["rows_not_converged"] == 20
    assert torch.equal(weight.dequantize(), W * current.mask)


def test_the_reference_judges_the_layer_and_ours_each_row() -> None:
    W, X = torch.randn(20, 32), inputs(200, 32)
    current = pruned(W, X, NM(2, 4), Dense(W.bfloat16()))
    _, ours = run(W, current, X)
    _, theirs = run(W, current, X, variant="reference", tolerance=1e-3)
    assert theirs["rows_kept"] in (0, 20)
    assert "error_at_least" not in theirs
    assert ours["error_after"] <= theirs["error_after"] * 1.001


def test_the_default_tolerance_is_the_papers_and_bounds_every_row() -> None:
    W, X = torch.randn(40, 64), inputs(300, 64)
    assert OptimaConfig().tolerance == 1e-2
    weight, report = run(W, pruned(W, X, NM(2, 4)), X, tolerance=1e-2)
    assert report["gap"] <= 1e-2
    assert (errors(weight, W, X) <= 1.0102 * least(W, weight.mask, X)).all()


@pytest.mark.parametrize("tolerance", [0, -1, 1, 2, "small"])
def test_a_tolerance_that_is_no_share_is_refused(tolerance: object) -> None:
    with pytest.raises(ConfigError, match="method 'optima': tolerance"):
        registry.configure("optima", {"tolerance": tolerance})


def real_layers(folder: Path, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """(weight [out, in], input [tokens, in]) of linears of a real model on plain text."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(STORIES * 20, return_tensors="pt")["input_ids"]
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.__setitem__(name, args[0][0])
        )
        for name in names
    ]
    with torch.no_grad():
        model(input_ids=ids[:, :500], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: (model.get_submodule(name).weight.detach(), seen[name]) for name in names}


def test_on_real_layers_it_reaches_the_minimum_and_proves_it(stories260k: Path) -> None:
    names = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
    layers = real_layers(stories260k, [f"model.layers.2.{name}" for name in names])
    for name, (W, X) in layers.items():
        current = pruned(W, X, NM(2, 4))
        weight, report = run(W, current, X)
        found, best = errors(weight, W, X), least(W, current.mask, X)
        masked = errors(current, W, X)
        assert (found <= masked * (1 + 1e-6)).all(), name
        assert found.sum() <= 1.001 * best.sum(), name
        assert found.sum() < 0.9 * masked.sum(), name
        norm = errors(torch.zeros_like(W), W, X).sum()
        assert report["error_at_least"] <= (best.sum() / norm) ** 0.5 * (1 + 1e-5), name
