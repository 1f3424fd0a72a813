"""methods/conformance.py on methods that search over whole models."""

from typing import Any

import pytest
import torch

from trinity.methods.conformance import check
from trinity.methods.contract import MethodConfig, Statistic
from trinity.methods.errors import ConfigError
from trinity.methods.searching import Choice, Levels, Searched, SearchTask


class Good:
    """Takes a level up where that helps."""

    name, paper, config, needs = "good", "none", MethodConfig, Statistic.NOTHING

    def problem(self, shape: tuple[int, int], config: MethodConfig) -> str | None:
        return None

    def levels(self, model: Searched, config: MethodConfig) -> Levels:
        return {name: {0: {}, 1: {"bits": 4}} for name in model.shapes}

    def rounds(self, config: MethodConfig) -> int:
        return 5

    def reads(self, model: Searched, config: MethodConfig) -> int:
        return 100

    def improve(self, best: Choice, at: int, task: SearchTask, config: MethodConfig) -> Choice:
        name = list(best)[at]
        made = {**best, name: 1}
        return made if task.divergence(made, [0]) < task.divergence(best, [0]) else best


class WithoutGiven(Good):
    def levels(self, model: Searched, config: MethodConfig) -> Levels:
        return {name: {1: {"bits": 4}} for name in model.shapes}


class OtherLayers(Good):
    def levels(self, model: Searched, config: MethodConfig) -> Levels:
        return {"elsewhere": {0: {}}}


class RefusesAll(Good):
    def levels(self, model: Searched, config: MethodConfig) -> Levels:
        raise ConfigError("good: nothing will do.")


class Endless(Good):
    def rounds(self, config: MethodConfig) -> Any:
        return float("inf")


class TooHigh(Good):
    def improve(self, best: Choice, at: int, task: SearchTask, config: MethodConfig) -> Choice:
        return dict.fromkeys(best, 2)


class LeavesOut(Good):
    def improve(self, best: Choice, at: int, task: SearchTask, config: MethodConfig) -> Choice:
        return dict(list(best.items())[1:])


class Drawn(Good):
    def improve(self, best: Choice, at: int, task: SearchTask, config: MethodConfig) -> Choice:
        return {name: int(torch.rand(()) < 0.5) for name in best}


class Changes(Good):
    def improve(self, best: Any, at: int, task: SearchTask, config: MethodConfig) -> Choice:
        best[next(iter(best))] = 1
        return dict(best)


class ReadsNothing(Good):
    def improve(self, best: Choice, at: int, task: SearchTask, config: MethodConfig) -> Choice:
        task.loss(best, [])
        return best


def test_a_good_search_conforms() -> None:
    assert check(Good()) == []


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (WithoutGiven(), "levels: a layer has no level 0"),
        (OtherLayers(), "levels: gave no levels for each layer"),
        (RefusesAll(), "nothing was tried: `levels` refuses it (good: nothing will do.)"),
        (Endless(), "rounds: gave inf, expected a positive integer"),
        (TooHigh(), "improve: chose a level that a layer does not have"),
        (LeavesOut(), "improve: chose no level for each layer"),
        (Drawn(), "improve: the same round chose otherwise"),
        (Changes(), "improve: changed the choice that it was given"),
        (ReadsNothing(), "improve: raised AssertionError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Good) else "",
)
def test_a_search_that_breaks_the_contract_is_found(method: Good, expected: str) -> None:
    assert expected in "\n".join(check(method))
