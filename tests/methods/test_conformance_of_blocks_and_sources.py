"""methods/conformance.py on block methods and checkpoint sources."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from trinity.methods.conformance import check, refusal
from trinity.methods.contract import BlockTask, MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense


class Options(MethodConfig):
    pass


class GoodBlock:
    name = "good-block"
    paper = "none"
    config = Options
    needs = Statistic.X_NORM

    def problem(self, shape: tuple[int, int], config: Options) -> str | None:
        return None

    def compress_block(self, task: BlockTask, config: Options) -> Mapping[str, CompressedWeight]:
        target = task.forward(task.weights, task.inputs[0])
        weights = {name: W.clone().requires_grad_() for name, W in task.weights.items()}
        with torch.enable_grad():
            loss = (task.forward(weights, task.inputs[0]) - 0.9 * target).square().mean()
        slopes = torch.autograd.grad(loss, list(weights.values()))
        steps = zip(weights.items(), slopes, strict=True)
        return {name: Dense((W - slope).detach()) for (name, W), slope in steps}


class ForgetsALinear(GoodBlock):
    def compress_block(self, task: BlockTask, config: Options) -> Mapping[str, CompressedWeight]:
        name = next(iter(task.weights))
        return {name: task.current[name]}


class TrainsTheOriginal(GoodBlock):
    def compress_block(self, task: BlockTask, config: Options) -> Mapping[str, CompressedWeight]:
        for W in task.weights.values():
            W.sub_(0.1)
        return {name: Dense(W.clone()) for name, W in task.weights.items()}


class GivesOneWeight(GoodBlock):
    def compress_block(self, task: BlockTask, config: Options) -> Any:
        return Dense(torch.ones(2, 2))


def test_a_good_block_method_conforms() -> None:
    assert check(GoodBlock()) == []


@pytest.mark.parametrize(
    ("method", "violation"),
    [
        (ForgetsALinear(), "gave weights for ['mlp.up'], expected ['mlp.down', 'mlp.up']"),
        (TrainsTheOriginal(), "changed its input weights.mlp.up"),
        (GivesOneWeight(), "gave a Dense, expected a mapping"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, GoodBlock) else "",
)
def test_a_block_method_that_breaks_the_contract_is_found(
    method: GoodBlock, violation: str
) -> None:
    assert violation in "\n".join(check(method))


class DividesByARow(GoodBlock):
    """Right on healthy blocks, and not on a row of zeros."""

    def compress_block(self, task: BlockTask, config: Options) -> Mapping[str, CompressedWeight]:
        return {
            name: Dense(W / W.norm(dim=1, keepdim=True) * W.norm(dim=1).mean())
            for name, W in task.weights.items()
        }


class RefusesEveryBlock(GoodBlock):
    def problem(self, shape: tuple[int, int], config: Options) -> str | None:
        return "is on a Tuesday"

    def compress_block(self, task: BlockTask, config: Options) -> Mapping[str, CompressedWeight]:
        raise ConfigError("refuses-every-block: is on a Tuesday.")


def test_block_methods_are_tried_on_degenerate_blocks() -> None:
    (found,) = check(DividesByARow())
    assert found.startswith("a block with a zero row and a dead input and 1 more case: raised")


def test_a_block_method_that_refuses_every_block_was_not_tried() -> None:
    (found,) = check(RefusesEveryBlock())
    assert found.startswith("nothing was tried: `problem` refuses a block of two linears, ")
    assert "(is on a Tuesday)" in found


def test_a_source_that_refuses_the_made_up_checkpoint_was_not_tried() -> None:
    assert refusal(GoodSource()) == "good-source: the checkpoint has no tensor 'magic'."
    assert refusal(CarelessSource()) is None


class GoodSource:
    name = "good-source"
    paper = "none"
    config = Options
    parts = ("magic",)

    def load(self, tensors: Mapping[str, Tensor], config: Options) -> Mapping[str, Dense]:
        if "magic" not in tensors:
            raise ConfigError("good-source: the checkpoint has no tensor 'magic'.")
        return {"layer": Dense(tensors["magic"])}


class CarelessSource(GoodSource):
    def load(self, tensors: Mapping[str, Tensor], config: Options) -> Mapping[str, Dense]:
        return {"layer": Dense(tensors["magic"])}


def test_a_good_source_conforms_with_a_checkpoint_and_may_refuse_the_made_up_one() -> None:
    assert check(GoodSource()) == []
    assert check(GoodSource(), tensors={"magic": torch.ones(2, 3)}) == []


def test_a_source_must_read_the_checkpoint_it_is_given_and_refuse_others_in_words() -> None:
    assert "raised ConfigError" in "\n".join(check(GoodSource(), tensors={"x": torch.ones(2, 3)}))
    assert "a checkpoint: raised KeyError" in "\n".join(check(CarelessSource()))


@pytest.mark.parametrize(
    ("example", "said"),
    [(lambda: {}["x"], "example: raised KeyError: 'x'"), (lambda: [1], "example: gave a list")],
)
def test_an_example_that_cannot_be_had_is_told_and_ends_nothing(
    example: Callable[[], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GoodSource, "example", staticmethod(example), raising=False)
    assert any(found.startswith(said) for found in check(GoodSource()))
    assert refusal(GoodSource()) is None
