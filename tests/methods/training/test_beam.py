"""methods/training/beam.py and methods/beam.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.methods.samples import (
    GridCase,
    assert_same_weight,
    every_kind,
    random_mask,
    random_quantized,
    tensors_of,
)
from trinity.methods.beam import BEAM, BeamConfig
from trinity.methods.contract import BlockTask, LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    NM,
    CompressedWeight,
    Dense,
    Sparse,
    VectorCoded,
    format_of,
)
from trinity.methods.training.beam import Tunable, TunedBlock

Array = NDArray[np.float64]
ABSURD = {"learning_rates": [1e3], "epochs": 1}


def forward(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Every linear reads the same input, and their outputs are added."""
    return torch.stack([torch.tanh(x @ weight.T) for weight in weights.values()]).sum(0)


def linear(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """One linear and nothing else."""
    (weight,) = weights.values()
    return x @ weight.T


def task_of(
    weights: Mapping[str, Tensor], current: Mapping[str, CompressedWeight], run: Any = forward
) -> BlockTask:
    inputs = tuple(torch.randn(6, 16) for _ in range(4))
    stats = {name: LayerStats() for name in weights}
    return BlockTask(weights, current, stats, inputs, run)


def near(current: Mapping[str, CompressedWeight], noise: float = 0.3) -> dict[str, Tensor]:
    """Original weights that compression may have come from."""
    return {n: w.dequantize() + noise * torch.randn(8, 16) for n, w in current.items()}


def tuned(task: BlockTask, **options: Any) -> tuple[dict[str, CompressedWeight], dict[str, Any]]:
    found = BEAM.compress_block(task, BeamConfig.model_validate(options))
    told = [dict(each.details) for each in found.values()]
    assert all(each == told[0] for each in told)
    return {name: each.weight for name, each in found.items()}, told[0]


def error(task: BlockTask, weights: Mapping[str, CompressedWeight]) -> float:
    """Mean squared error in float64, of what is stored."""
    made = {name: weight.dequantize().double() for name, weight in weights.items()}
    wanted = {name: W.double() for name, W in task.weights.items()}
    pairs = [
        (task.forward(made, x.double()), task.forward(wanted, x.double())) for x in task.inputs
    ]
    return float(np.mean([float((y - t).square().mean()) for y, t in pairs]))


def adam(W: Array, current: Array, inputs: list[Array], rate: float, steps: int) -> list[Any]:
    """Adam on one linear that keeps its zeros, in float64: the weight after each step, and the
    losses before.
    """
    w, m, v, found, losses = current.copy(), 0.0 * W, 0.0 * W, [], []
    for step in range(len(inputs)):
        x = inputs[step]
        difference = x @ w.T - x @ W.T
        losses.append(float(np.mean(difference**2)))
        gradient = 2 * difference.T @ x / difference.size
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        now = rate * (1 - 0.99 * step / steps)
        size = np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8
        w = np.where(current == 0, 0.0, w - now * m / (1 - 0.9 ** (step + 1)) / size)
        found.append(w)
    return [found, losses]


@pytest.fixture
def pruned() -> tuple[BlockTask, Array, Array, list[Array]]:
    """A linear under a 2:4 mask, stored dense; and the same in float64."""
    W = torch.randn(8, 16)
    current = W * random_mask(8, 16, NM(2, 4))
    task = task_of({"layer": W}, {"layer": Dense(current)}, linear)
    inputs = [x.double().numpy() for x in task.inputs]
    return task, W.double().numpy(), current.double().numpy(), inputs


def test_steps_are_adams_by_hand_on_a_falling_rate(
    pruned: tuple[BlockTask, Array, Array, list[Array]],
) -> None:
    task, W, current, inputs = pruned
    found, told = tuned(task, learning_rates=[1e-2], epochs=2, keep="last")
    (states, _) = adam(W, current, inputs * 2, 1e-2, 8)
    np.testing.assert_allclose(found["layer"].dequantize().numpy(), states[-1], atol=1e-5)
    assert told["epoch_kept"] == 2
    assert told["error_before"] == pytest.approx(error(task, task.current), rel=1e-5)
    assert told["error_after"] == pytest.approx(error(task, found), rel=1e-5)


def test_the_rate_is_the_one_with_the_lowest_losses_late_in_its_trial(
    pruned: tuple[BlockTask, Array, Array, list[Array]],
) -> None:
    task, W, current, inputs = pruned
    rates = [1e-5, 3e-2, 3.0, 1e-1]
    late = {rate: np.mean(adam(W, current, inputs[:3], rate, 8)[1][1:]) for rate in rates}
    _, told = tuned(task, learning_rates=rates, trial=3, epochs=2)
    assert told["learning_rate"] == min(late, key=lambda rate: late[rate])
    assert told["learning_rate"] not in (rates[0], rates[2])  # the trial decided something


def test_a_trial_leaves_nothing_behind(
    pruned: tuple[BlockTask, Array, Array, list[Array]],
) -> None:
    task, *_ = pruned
    found, told = tuned(task, learning_rates=[1.0, 1e-2, 1e-6], keep="last")
    alone, _ = tuned(task, learning_rates=[told["learning_rate"]], keep="last")
    assert_same_weight(found["layer"], alone["layer"])


def test_a_rate_that_overflows_loses_its_trial() -> None:
    W = torch.randn(8, 16)
    huge = lambda weights, x: linear(weights, x).exp()  # noqa: E731
    task = task_of({"layer": W / 8}, {"layer": Dense(W / 9)}, huge)
    for rates in ([1e30, 1e-4], [1e-4, 1e30]):
        assert tuned(task, learning_rates=rates)[1]["learning_rate"] == 1e-4


def test_numbers_too_large_for_their_16_bits_lose_a_trial_and_are_never_kept() -> None:
    W = torch.randn(8, 16)
    task = task_of({"layer": W}, {"layer": Dense((W / 2).half())}, linear)
    assert tuned(task, learning_rates=[1e6, 1e-3])[1]["learning_rate"] == 1e-3
    found, told = tuned(task, learning_rates=[1e6])
    assert told["epoch_kept"] == 0
    assert_same_weight(found["layer"], task.current["layer"])


def test_the_error_never_grows_where_the_best_is_kept() -> None:
    # Scales of vectors would fall below zero, which no format holds: a rate that is lost.
    kinds = every_kind().items()
    current = {name: weight for name, weight in kinds if not isinstance(weight, VectorCoded)}
    task = task_of(near(current), current)
    best, told = tuned(task, **ABSURD)
    for name, weight in current.items():
        assert_same_weight(best[name], weight)
    assert told["epoch_kept"] == 0
    assert told["error_after"] == told["error_before"]
    last, told = tuned(task, **ABSURD, keep="last")
    assert error(task, last) > error(task, current)
    assert told["error_after"] > told["error_before"]


def test_the_best_epoch_is_kept_and_not_the_last(
    pruned: tuple[BlockTask, Array, Array, list[Array]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors as they might be: lowest after the second epoch."""
    task, W, current, inputs = pruned
    told = iter([1.0, 0.7, 0.5, 0.6])
    monkeypatch.setattr(TunedBlock, "error", lambda self: next(told))
    found, details = tuned(task, learning_rates=[1e-2], epochs=3)
    (states, _) = adam(W, current, inputs * 3, 1e-2, 12)
    np.testing.assert_allclose(found["layer"].dequantize().numpy(), states[7], atol=1e-5)
    assert not np.allclose(states[7], states[11], atol=1e-4)
    assert (details["epoch_kept"], details["error_after"]) == (2, 0.5)


@pytest.mark.parametrize("zeros", ["all", "pattern"])
@pytest.mark.parametrize("name", every_kind())
def test_every_kind_comes_nearer_in_the_format_it_had(name: str, zeros: str) -> None:
    current = {name: every_kind()[name]}
    task = task_of(near(current), current, linear)
    found, told = tuned(task, learning_rates=[2e-2, 0.2], epochs=20, zeros=zeros)
    assert format_of(found[name]) == format_of(current[name])
    assert error(task, found) < 0.99 * error(task, current)
    assert told["error_after"] == pytest.approx(error(task, found), rel=1e-3)
    before, after = tensors_of(current[name]), tensors_of(found[name])
    stays = ("mask", "scale", "zero_point")
    if isinstance(found[name], VectorCoded):  # whose tables and scales are trained
        stays = ("codes",)
    for part in before:
        if part.endswith(stays):
            assert torch.equal(before[part], after[part]), part


@pytest.mark.parametrize("name", every_kind())
def test_zeros_stay_zeros(name: str) -> None:
    weight = Tunable(every_kind()[name], "all")
    starts = [parameter.detach() == 0 for parameter in weight.parameters]
    current = {name: weight.weight}
    found, _ = tuned(task_of(near(current), current, linear), learning_rates=[0.1], keep="last")
    after = Tunable(found[name], "all")
    for start, parameter in zip(starts, after.parameters, strict=True):
        assert bool((parameter[start] == 0).all())


def test_under_the_rule_of_patterns_a_code_may_leave_zero_and_a_pruned_weight_may_not() -> None:
    quantized = random_quantized(8, 16, GridCase(3, groups=2))
    mask = random_mask(8, 16, NM(2, 4))
    dense = Dense(torch.randn(8, 16) * mask)
    kinds = {"quantized": quantized, "sparse": Sparse(quantized, mask, NM(2, 4)), "dense": dense}
    for name, weight in kinds.items():
        task = task_of({name: weight.dequantize() + 1.0}, {name: weight}, linear)
        options = {"learning_rates": [0.1], "epochs": 10, "keep": "last"}
        free = {
            zeros: tuned(task, **options, zeros=zeros)[0][name].dequantize() != 0
            for zeros in ("all", "pattern")
        }
        born = free["pattern"] & (weight.dequantize() == 0)
        assert not bool((free["all"] & (weight.dequantize() == 0)).any())
        assert bool(born.any()) == (name != "dense")
        if name != "quantized":
            assert not bool((born & ~mask).any())


def test_an_uncompressed_block_has_no_error_and_stays_bit_for_bit() -> None:
    current = every_kind()
    task = task_of({name: weight.dequantize() for name, weight in current.items()}, current)
    for keep in ("best", "last"):
        found, told = tuned(task, keep=keep)
        # An adapter's product is summed in the same order both times.
        assert told["error_before"] == told["error_after"] == 0.0
        for name, weight in current.items():
            assert_same_weight(found[name], weight)


def test_what_is_stored_is_what_the_block_was_judged_by() -> None:
    for weight in every_kind().values():
        layer = Tunable(weight, "pattern")
        with torch.no_grad():
            for parameter in layer.parameters:
                parameter += 0.1 * torch.randn_like(parameter)
        torch.testing.assert_close(layer.effective().detach(), layer.stored().dequantize())


def test_what_cannot_be_tuned_is_refused() -> None:
    W = torch.randn(8, 16)
    task = task_of({"layer": W}, {"layer": Dense(W / 2)}, linear)
    with pytest.raises(ConfigError, match=r"beam: .*no calibration data"):
        tuned(BlockTask(task.weights, task.current, task.stats, (), task.forward))
    broken = task_of({"layer": W}, {"layer": Dense(W / 2)}, lambda w, x: linear(w, x) / 0.0)
    with pytest.raises(ConfigError, match="the compressed block's output is not finite"):
        tuned(broken)
    huge = task_of({"layer": W}, {"layer": Dense(W / 2)}, lambda w, x: linear(w, x).exp())
    with pytest.raises(ConfigError, match=r"diverged at rate 1e\+30\. .*keep: best"):
        tuned(huge, learning_rates=[1e30], keep="last")
