"""methods/patch.py: masks that a loss teaches, the modes, and what is refused."""

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from trinity.methods.contract import ModelTask
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, CompressedWeight, Dense, Quantized, Sparse, Tiles
from trinity.methods.patch import PatchConfig, learn, regularisers, stored
from trinity.methods.training.patch import hard_mask, magnitude_masks

SHAPE = (16, 16)
QUICK = {"tile": 8, "epochs": 40, "batch": 2, "learning_rate": 0.02, "sparsity": 0.25}


def _weight() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def _task(
    important: Tensor, current: CompressedWeight | None = None
) -> tuple[ModelTask, list[int]]:
    """The loss is what removing a weight costs, by hand.  important: [out, in]"""
    calls: list[int] = []
    W = _weight()

    def loss(weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        calls.append(1)
        return (important * (weights["layer"] - W).square()).sum()

    sequences = torch.zeros(4, 3, dtype=torch.int64)
    return ModelTask({"layer": current or Dense(W)}, sequences, loss, lambda _: W.clone()), calls


def _config(**changes: object) -> PatchConfig:
    return PatchConfig.model_validate(QUICK | changes)


def test_the_tiles_that_matter_stay_dense() -> None:
    important = torch.full(SHAPE, 0.01)
    important[:8, 8:] = 10.0
    important[8:, :8] = 10.0
    # Towards the other tiles at the start: the loss has to move them.
    logits, _ = learn(_task(important)[0], _config(prior="random", magnitude_weight=0.0))
    assert logits["layer"].T is not None
    assert torch.equal(logits["layer"].T > 0, torch.tensor([[False, True], [True, False]]))


def _wrong_prior(**changes: object) -> tuple[PatchConfig, ModelTask, Tensor]:
    """Sixteen tiles, of which the prior keeps the eight dense whose 2:4 costs nothing.

    The third is which tiles 2:4 costs much.
    """
    costly = torch.tensor([[True, False] * 2, [False, True] * 2] * 2)
    wide = costly.repeat_interleave(4, 0).repeat_interleave(4, 1)
    W = torch.where(wide, 1.0, 1.05) * torch.where(_weight() > 0, 1.0, -1.0)

    def loss(weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        return 10 * ((weights["layer"] - W)[wide]).square().mean()

    options = {"tile": 4, "epochs": 200, "batch": 4, "sparsity": 0.25, "magnitude_weight": 0.0}
    sequences = torch.zeros(4, 3, dtype=torch.int64)
    task = ModelTask({"layer": Dense(W)}, sequences, loss, lambda _: W.clone())
    return PatchConfig.model_validate(options | changes), task, costly


@pytest.mark.parametrize("variant", ["joint", "tile"])
def test_two_hundred_steps_turn_every_tile_that_the_prior_took_wrongly(variant: str) -> None:
    config, task, costly = _wrong_prior(variant=variant)
    if variant == "tile":
        two_four = torch.tensor([True, True, False, False]).repeat(16, 4)
        current = {"layer": Sparse(Dense(task.original("layer")), two_four, NM(2, 4))}
        task = dataclasses.replace(task, current=current)
    logits, W = learn(task, config)
    layer = logits["layer"]
    assert layer.T is not None
    assert torch.equal(layer.T > 0, costly)
    details = stored(W["layer"], layer).details
    assert details == {"sparse_tiles": 8, "tiles": 16, "turned_tiles": 16, "sparsity": 0.25}


def test_the_rate_of_two_thousand_steps_turns_no_tile_in_a_few() -> None:
    config, task, _ = _wrong_prior(learning_rate=1e-3, epochs=60)
    logits, W = learn(task, config)
    assert stored(W["layer"], logits["layer"]).details["turned_tiles"] == 0
    assert [PatchConfig().rate(steps) for steps in (2000, 200, 10)] == [1e-3, 1e-2, 2e-2]


def test_the_patterns_that_matter_are_kept() -> None:
    important = torch.full(SHAPE, 0.01)
    important[:, ::4] = important[:, 3::4] = 10.0
    task, _ = _task(important)
    logits, _ = learn(task, _config(variant="maskllm", prior="magnitude", magnitude_weight=0.0))
    mask = hard_mask(logits["layer"])
    assert set(mask.view(-1, 4).sum(-1).tolist()) == {2}
    assert float((mask == (important > 1)).float().mean()) > 0.95
    before, _ = magnitude_masks(_weight(), 0.75)
    assert not torch.equal(mask, before)


def test_the_mode_tile_keeps_the_mask_of_the_step_before() -> None:
    two_four = torch.tensor([False, True, True, False]).repeat(16, 4)
    current = Sparse(Dense(_weight()), two_four, NM(2, 4))
    logits, weights = learn(_task(torch.ones(SHAPE), current)[0], _config(variant="tile"))
    assert logits["layer"].P is None
    mask = hard_mask(logits["layer"])
    assert bool((mask | ~two_four).all())
    # The weights of dense tiles come back whole.
    assert torch.equal(weights["layer"], _weight())
    assert torch.equal(stored(_weight(), logits["layer"]).weight.dequantize(), _weight() * mask)


@pytest.mark.parametrize("density", ["global", "layer"])
def test_the_density_ends_near_its_target(density: str) -> None:
    changes = {"density": density, "density_weight": 50.0, "tile": 4, "magnitude_weight": 0.0}
    logits, W = learn(_task(torch.full(SHAPE, 1e-4))[0], _config(**changes))
    made = stored(W["layer"], logits["layer"])
    assert float(made.details["sparsity"]) == pytest.approx(0.25, abs=0.1)


def test_formats_are_tiles_or_what_all_tiles_are() -> None:
    logits, W = learn(_task(torch.ones(SHAPE))[0], _config())
    layer = logits["layer"]
    layer.T = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    mixed = stored(W["layer"], layer).weight
    assert isinstance(mixed, Sparse)
    assert mixed.pattern == Tiles(0.75, 8)
    assert mixed.sparsity == 0.375
    layer.T = -torch.ones(2, 2)
    whole = stored(W["layer"], layer).weight
    assert isinstance(whole, Sparse)
    assert whole.pattern == NM(2, 4)
    layer.T = torch.ones(2, 2)
    assert isinstance(stored(W["layer"], layer).weight, Dense)


def test_regularisers_are_those_of_the_paper_and_of_the_code() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(8, 8, generator=generator) for name in "ab"}
    masks = {name: torch.rand(8, 8, generator=generator) for name in "ab"}
    double = {n: (masks[n].double() * W.double()).norm() for n, W in weights.items()}
    whole = {n: W.double().norm() for n, W in weights.items()}
    density = sum(m.double().sum() for m in masks.values()) / 128
    code, paper = _config(), _config(regularizer="paper")
    share = sum(double.values()) / sum(whole.values())
    expected = 7 * abs(density - 0.75) - 10 * 0.4 * share
    assert float(regularisers(masks, weights, code, 0.6)) == pytest.approx(float(expected), 1e-4)
    squares = sum(d**2 for d in double.values()) / sum(w**2 for w in whole.values())
    expected = 7 * abs(density - 0.75) - 10 * squares
    assert float(regularisers(masks, weights, paper, 0.6)) == pytest.approx(float(expected), 1e-4)


def test_a_step_reads_each_sequence_of_its_batch_once_and_a_seed_repeats() -> None:
    task, calls = _task(torch.ones(SHAPE))
    first, _ = learn(task, _config(epochs=3, batch=2))
    assert len(calls) == 3 * 4
    again, _ = learn(task, _config(epochs=3, batch=2))
    other, _ = learn(task, _config(epochs=3, batch=2, seed=1))
    assert first["layer"].P is not None
    assert again["layer"].P is not None
    assert other["layer"].P is not None
    assert torch.equal(first["layer"].P, again["layer"].P)
    assert not torch.equal(first["layer"].P, other["layer"].P)


def test_weights_that_cannot_be_learned_from_are_refused() -> None:
    W = _weight()
    quantized = Quantized(torch.ones(SHAPE, dtype=torch.int8), torch.ones(1, 1), None, 4)
    one_four = torch.tensor([True, False, False, False]).repeat(16, 4)
    cases = [
        (Dense(W), {"prior": "steps"}, "asks for a 2:4 mask of an earlier step"),
        (Sparse(Dense(W), one_four, NM(1, 4)), {}, "is 1:4 already"),
        (quantized, {}, "already quantized"),
    ]
    for current, changes, message in cases:
        with pytest.raises(ConfigError, match=message):
            learn(_task(torch.ones(SHAPE), current)[0], _config(**changes))
