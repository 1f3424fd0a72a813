"""methods/awq.py and methods/awq_clip.py."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.hessians import exact, inputs
from tests.methods.samples import random_mask
from trinity.methods import rtn, sample_layers
from trinity.methods.awq import AWQ, AwqConfig, rounded, scales
from trinity.methods.awq_clip import AWQ_CLIP, AwqClipConfig, clipped
from trinity.methods.contract import BlockTask, LayerStats, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Dense, Quantized, Sparse
from trinity.methods.transforms import Fold, TransformTask

BOTH = Statistic.X_MEAN_ABS | Statistic.HESSIAN


def config(**options: Any) -> AwqConfig:
    return AwqConfig.model_validate({"bits": 3, "group_size": 8, **options})


def block(widths: tuple[int, int] = (32, 64)) -> TransformTask:
    """A block whose inputs differ in size by channel."""
    task = sample_layers.block_task(BOTH, widths)
    sizes = torch.logspace(-1.5, 1.5, widths[0])[torch.randperm(widths[0])]
    X = [x * sizes for x in task.inputs]
    weights = {name: W / 2 for name, W in task.weights.items()}
    hidden = [torch.nn.functional.gelu(x @ weights["mlp.up"].T) for x in X]
    stats = {
        name: sample_layers.statistics(torch.cat(x), BOTH, 1)
        for name, x in (("mlp.up", X), ("mlp.down", hidden))
    }
    given = BlockTask(weights, {}, stats, tuple(X), task.forward)
    return sample_layers.transform_task(given)


def block_error(task: TransformTask, fold: Fold, alpha: float, options: AwqConfig) -> float:
    """Oracle: the loss of one alpha in float64, by plain loops over the definition.

    Codes are computed in float32 as everywhere: of a tie, both roundings are right.
    """
    (name,) = fold.linears
    x = exact(task.stats[name].x_mean_abs)  # type: ignore[arg-type]  # it was collected
    s = np.maximum(x**alpha, 1e-4)
    s = s / np.sqrt(s.max() * s.min())
    W = task.weights[name]
    made = rtn.compress((W.double() * torch.tensor(s)).float(), options).dequantize().double()
    weights = {n: w.double() for n, w in task.weights.items()}
    other = weights | {name: made / torch.tensor(s)}
    losses = [
        float((task.forward(other, X.double()) - task.forward(weights, X.double())).square().mean())
        for X in task.inputs
    ]
    return sum(losses) / len(losses)


def test_the_scale_is_the_best_of_the_grid_at_the_outputs_of_the_block() -> None:
    task, options = block(), config()
    made = AWQ.transform(task, options)
    assert set(made) == set(task.folds)
    for fold in task.folds:
        losses = [block_error(task, fold, step / 20, options) for step in range(20)]
        told = made[fold].details
        assert float(told["error"]) == pytest.approx(min(losses), rel=1e-3)
        assert float(told["error_without_scale"]) == pytest.approx(losses[0], rel=1e-3)
        at_best = losses[round(20 * float(told["alpha"]))]
        assert at_best == pytest.approx(min(losses), rel=1e-3)
    assert made[task.folds[0]].details["alpha"] != 0  # sizes that differ so much are worth a scale


def test_second_moments_give_the_error_of_the_outputs() -> None:
    task, options = block(), config(loss="layers")
    made = AWQ.transform(task, options)
    X = torch.cat(task.inputs).double()
    W = task.weights["mlp.up"]
    fold = task.folds[0]
    found = rounded(W, made[fold].scale, options)
    direct = float((X @ (found - W).double().T).square().sum()) * 2 / len(X)
    assert float(made[fold].details["error"]) == pytest.approx(direct, rel=1e-3)


def test_alpha_zero_is_rounding_to_nearest() -> None:
    s = scales(torch.rand(16) + 0.1, 0.0)
    assert torch.equal(s, torch.ones(16))
    W, options = torch.randn(8, 16), config()
    assert torch.equal(rounded(W, s, options), rtn.compress(W, options).dequantize())


def test_a_single_alpha_moves_nothing() -> None:
    task = block()
    made = AWQ.transform(task, config(alphas=1))
    assert all(torch.equal(one.scale, torch.ones_like(one.scale)) for one in made.values())


def test_the_grid_has_to_fit_every_linear_of_the_block() -> None:
    with pytest.raises(ConfigError, match="awq: group_size 48 does not divide in"):
        AWQ.transform(block(), config(group_size=48))


def clip_error(W: Tensor, H: Tensor, limit: float, options: AwqClipConfig) -> float:
    """Oracle of one row and one group: d H d^T in float64.  W: [1, size]"""
    tried = W.clamp(-limit, limit)
    d = exact(rtn.compress(tried, options).dequantize() - W)[0]
    return float(d @ exact(H) @ d)


@pytest.mark.parametrize("symmetric", [True, False])
def test_each_row_and_group_has_the_limit_with_the_least_error(symmetric: bool) -> None:
    size, W, X = 8, torch.randn(5, 24) ** 3, inputs(100, 24)
    H = 2 / 100 * X.T @ X
    options = AwqClipConfig(bits=3, group_size=size, symmetric=symmetric)
    found = clipped(W, H, options)
    smaller = 0
    for i in range(5):
        for g in range(0, 24, size):
            part, own = W[i : i + 1, g : g + size], H[g : g + size, g : g + size]
            largest = float(part.abs().max())
            limits = [largest * (1 - step / 20) for step in range(10)]
            best = min(clip_error(part, own, limit, options) for limit in limits)
            kept = float(found[i, g : g + size].abs().max())
            assert clip_error(part, own, kept, options) == pytest.approx(best, rel=1e-3)
            smaller += kept < largest * 0.99
    assert smaller > 3


def clip_task(weights: dict[str, Tensor], X: Tensor) -> BlockTask:
    stats = LayerStats(tokens=len(X), H=2 / len(X) * X.T @ X)
    current = {name: Dense(W) for name, W in weights.items()}
    return BlockTask(weights, current, dict.fromkeys(weights, stats), (), lambda w, x: x)


def test_query_and_key_are_rounded_without_clipping() -> None:
    W, X = torch.randn(6, 16) ** 3, inputs(100, 16)
    names = ("0.self_attn.q_proj", "0.self_attn.v_proj")
    options = AwqClipConfig(bits=3, group_size=8)
    made = AWQ_CLIP.compress_block(clip_task(dict.fromkeys(names, W), X), options)
    plain = rtn.compress(W, options).dequantize()
    query, value = (made[name] for name in names)
    assert isinstance(query, Quantized)
    assert isinstance(value, Quantized)
    assert torch.equal(query.dequantize(), plain)
    assert not torch.equal(value.dequantize(), plain)
    errors = [(X @ (w.dequantize() - W).T).norm() for w in (query, value)]
    assert errors[1] < errors[0]


def test_a_mask_stays() -> None:
    W, X = torch.randn(6, 16), inputs(100, 16)
    mask = random_mask(6, 16, NM(2, 4))
    task = clip_task({"v": W}, X)
    current = {"v": Sparse(Dense(W), mask, NM(2, 4))}
    given = BlockTask(task.weights, current, task.stats, (), task.forward)
    made = AWQ_CLIP.compress_block(given, AwqClipConfig(group_size=8))["v"]
    assert isinstance(made, Sparse)
    assert bool((made.dequantize()[~mask] == 0).all())
