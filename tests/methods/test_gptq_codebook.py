"""methods/gptq_codebook.py."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.hessians import error, exact, inputs, stats_of
from tests.methods.samples import random_mask
from tests.oracles import codebooks, feedback
from trinity.methods import registry
from trinity.methods.contract import LayerStats
from trinity.methods.formats import NM, Coded, CompressedWeight, Dense, Sparse, format_of
from trinity.methods.gptq_codebook import GPTQ_CODEBOOK, GptqCodebookConfig

VALUES = ["nf4", "mxfp4", "nvfp4", "fp8"]


def settled(
    W: Tensor, stats: LayerStats, current: CompressedWeight | None = None, **options: Any
) -> CompressedWeight:
    config = GptqCodebookConfig.model_validate({"precision": "float64", **options})
    return GPTQ_CODEBOOK.compress(W, current or Dense(W), stats, config)


def nearest(W: Tensor, values: str) -> Coded:
    config = registry.configure(values, {})
    found = registry.get(values).compress(W, Dense(W), LayerStats(), config)  # type: ignore[union-attr]  # they are Methods
    assert isinstance(found, Coded)
    return found


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("act_order", [False, True])
def test_it_is_optimal_brain_surgery_under_the_scales_of_rounding_to_nearest(
    values: str, act_order: bool
) -> None:
    W, stats = torch.randn(6, 64), stats_of(inputs(128, 64))
    assert stats.H is not None
    start = nearest(W, values)
    by_input = start.scales().repeat_interleave(64 // start.scale.shape[1], dim=1).double().numpy()
    table = _levels(start.table)
    H = feedback.damped(exact(stats.H), 0.01)
    order = np.arange(64)
    if act_order:
        order = np.argsort(-np.diag(exact(stats.H)), kind="stable")

    def decide(j: int, now: feedback.Array) -> feedback.Array:
        scale = by_input[:, order[j]]
        choices = np.abs(now[:, j : j + 1] - scale[:, None] * table[None, :])
        return np.asarray(scale * table[choices.argmin(1)])

    expected = np.empty((6, 64))
    expected[:, order] = feedback.sweep(
        W.double().numpy()[:, order], H[np.ix_(order, order)], decide
    )
    found = settled(W, stats, values=values, act_order=act_order)
    assert format_of(found) == format_of(start)
    np.testing.assert_allclose(found.dequantize().numpy(), expected, rtol=1e-5, atol=1e-6)


def _levels(table: str) -> feedback.Array:
    tables = {
        "nf4": codebooks.quantiles(),
        "e2m1": [*codebooks.E2M1, *(-x for x in codebooks.E2M1[1:])],
        "e4m3": codebooks.e4m3(),
    }
    return np.array(tables[table])


@pytest.mark.parametrize("values", VALUES)
def test_without_correlations_it_rounds_to_nearest(values: str) -> None:
    W = torch.randn(4, 64)
    found = settled(W, LayerStats(tokens=64, H=torch.eye(64)), values=values)
    assert torch.equal(found.dequantize(), nearest(W, values).dequantize())


@pytest.mark.parametrize("values", VALUES)
def test_it_leaves_less_error_at_the_outputs_than_rounding_to_nearest(values: str) -> None:
    W, stats = torch.randn(16, 64), stats_of(inputs(256, 64))
    found, plain = settled(W, stats, values=values), nearest(W, values)
    assert error(W, found.dequantize(), stats) < error(W, plain.dequantize(), stats)


def test_a_mask_stays_and_pruned_entries_are_zero() -> None:
    W, stats = torch.randn(8, 64), stats_of(inputs(128, 64))
    mask = random_mask(8, 64, NM(2, 4))
    found = settled(W, stats, Sparse(Dense(W), mask, NM(2, 4)), values="nvfp4", target="original")
    assert isinstance(found, Sparse)
    assert torch.equal(found.mask, mask)
    assert not bool(found.dequantize()[~mask].any())
