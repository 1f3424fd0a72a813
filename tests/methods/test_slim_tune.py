"""methods/slim_tune.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.samples import (
    assert_same_weight,
    every_kind,
    random_mask,
    random_stats,
    tensors_of,
)
from trinity.methods import rtn, slim_lora
from trinity.methods.contract import ModelTask
from trinity.methods.errors import ConfigError
from trinity.methods.formats import NM, Adapted, CompressedWeight, Dense, Sparse, format_of
from trinity.methods.slim_tune import (
    SlimTuneConfig,
    Tuned,
    _backward,
    _schedule,
    tune,
)

SEQUENCES = torch.arange(12).view(4, 3)


def config(**options: Any) -> SlimTuneConfig:
    """Large steps: these models are small."""
    defaults = {"learning_rate": 1e-2, "batch": 2, "epochs": 20, "warmup": 0, "weight_decay": 0.0}
    return SlimTuneConfig.model_validate({**defaults, **options})


def regression(current: Mapping[str, CompressedWeight], targets: Mapping[str, Tensor]) -> ModelTask:
    """A loss that is known: squared distances of the weights from targets, times 1 + ids[0]."""

    def loss(weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
        distances = [(weights[name] - target).square().sum() for name, target in targets.items()]
        return torch.stack(distances).sum() * (1 + ids[0])

    return ModelTask(current, SEQUENCES, loss, lambda name: current[name].dequantize())


def distance(weight: CompressedWeight, target: Tensor) -> float:
    return float((weight.dequantize() - target).norm())


def test_a_tuned_weight_keeps_its_format_its_mask_and_its_scales() -> None:
    current = every_kind()
    targets = {name: weight.dequantize() + 0.5 for name, weight in current.items()}
    tuned = tune(regression(current, targets), config())
    for name, weight in current.items():
        assert format_of(tuned[name]) == format_of(weight), name
        before, after = tensors_of(weight), tensors_of(tuned[name])
        for part in before:
            if part.endswith(("mask", "scale", "zero_point")):
                assert torch.equal(before[part], after[part]), (name, part)


def test_tuning_lowers_the_loss_of_every_kind_of_compressed_weight() -> None:
    W, stats = torch.randn(16, 32), random_stats(32)
    rounded = rtn.compress(W, rtn.RtnConfig(group_size=8))
    sparse = Sparse(rounded, random_mask(16, 32, NM(2, 4)), NM(2, 4))
    current: dict[str, CompressedWeight] = {"dense": Dense(W), "rounded": rounded, "sparse": sparse}
    for bits, along, pattern in [
        (None, "inputs", None),
        (4, "inputs", None),
        (4, "outputs", None),
        (None, "inputs", "2:4"),
        (8, "inputs", "2:4"),
    ]:
        options = slim_lora.SlimLoraConfig.model_validate(
            {"rank": 8, "adapter_bits": bits, "adapter_group": 8, "adapter_groups_along": along,
             "adapter_pattern": pattern}
        )  # fmt: skip
        current[f"{bits} {along} {pattern}"] = slim_lora.compress(W, sparse, stats, options)
    targets = {name: W + torch.randn(16, 32) for name in current}
    tuned = tune(regression(current, targets), config(epochs=60))
    for name, target in targets.items():
        assert distance(tuned[name], target) < 0.97 * distance(current[name], target), name


def test_beside_an_adapter_the_base_is_frozen() -> None:
    current = {name: w for name, w in every_kind().items() if isinstance(w, Adapted)}
    targets = {name: torch.randn(8, 16) for name in current}
    tuned = tune(regression(current, targets), config())
    for name, weight in current.items():
        found = tuned[name]
        assert isinstance(found, Adapted)
        assert found.base is weight.base


def test_a_weight_at_its_optimum_stays_bit_for_bit() -> None:
    current = every_kind()
    targets = {name: weight.dequantize() for name, weight in current.items()}
    for optimizer in ("adamw", "adafactor"):
        tuned = tune(regression(current, targets), config(optimizer=optimizer))
        for name, weight in current.items():
            assert_same_weight(tuned[name], weight)


def test_one_step_of_a_dense_weight_is_adamw_on_the_mean_gradient_of_the_batch() -> None:
    W, target = torch.randn(3, 4), torch.randn(3, 4)
    task = regression({"layer": Dense(W)}, {"layer": target})
    found = tune(task, config(batch=4, epochs=1, weight_decay=0.1))["layer"].dequantize()
    # The first step of AdamW by hand: decay, then the learning rate against the gradient's sign.
    w = W.double().numpy()
    gradient = (
        2 * (w - target.double().numpy()) * np.mean([1 + ids[0] for ids in SEQUENCES.tolist()])
    )
    expected = w * (1 - 1e-2 * 0.1) - 1e-2 * gradient / (np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(found.double().numpy(), expected, atol=1e-6)


def test_batches_of_one_gradient_equal_one_batch_of_its_mean() -> None:
    current = every_kind()
    targets = {name: torch.randn(8, 16) for name in current}
    layers = {name: Tuned.of(weight) for name, weight in current.items()}
    task = regression(current, targets)
    effective = {name: layer.effective() for name, layer in layers.items()}
    torch.stack([task.loss(effective, ids) for ids in SEQUENCES]).mean().backward()  # type: ignore[no-untyped-call]
    expected = [p.grad for layer in layers.values() for p in layer.parameters]
    again = {name: Tuned.of(weight) for name, weight in current.items()}
    _backward(task, again, SEQUENCES)
    found = [p.grad for layer in again.values() for p in layer.parameters]
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_the_learning_rate_rises_and_falls_in_lines() -> None:
    rates = [_schedule(step, 10, 4) for step in range(10)]
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert [_schedule(step, 2, 5) for step in range(2)] == [1 / 6, 2 / 6]
    assert _schedule(0, 1, 0) == 1


def test_what_is_stored_is_what_the_forward_pass_saw() -> None:
    for weight in every_kind().values():
        layer = Tuned.of(weight)
        with torch.no_grad():
            for parameter in layer.parameters:
                parameter += 0.1 * torch.randn_like(parameter)
        torch.testing.assert_close(layer.effective().detach(), layer.stored().dequantize())


def test_a_loss_that_is_not_finite_is_refused() -> None:
    task = ModelTask(
        {"layer": Dense(torch.ones(2, 2))},
        SEQUENCES,
        lambda w, _: w["layer"].sum() / 0.0,
        lambda _: torch.ones(2, 2),
    )
    with pytest.raises(ConfigError, match="slim-tune: the loss is not finite"):
        tune(task, config())
