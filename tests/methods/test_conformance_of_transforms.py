"""methods/conformance.py on methods that move scales between layers."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from trinity.methods.conformance import check
from trinity.methods.contract import MethodConfig, Statistic
from trinity.methods.transforms import Fold, Scaled, TransformTask


class Good:
    name, paper, config, needs = "good", "none", MethodConfig, Statistic.X_MEAN_ABS

    def problem(self, shape: tuple[int, int], config: MethodConfig) -> str | None:
        return None

    def of(self, task: TransformTask, fold: Fold) -> Tensor:
        x_mean_abs = task.stats[fold.linears[0]].x_mean_abs
        assert x_mean_abs is not None
        return x_mean_abs + 1

    def transform(self, task: TransformTask, config: MethodConfig) -> Mapping[Fold, Scaled]:
        return {fold: Scaled(self.of(task, fold)) for fold in task.folds}


class Negative(Good):
    def of(self, task: TransformTask, fold: Fold) -> Tensor:
        return -super().of(task, fold)


class Short(Good):
    def of(self, task: TransformTask, fold: Fold) -> Tensor:
        return super().of(task, fold)[1:]


class Drawn(Good):
    def of(self, task: TransformTask, fold: Fold) -> Tensor:
        return torch.rand_like(super().of(task, fold)) + 1


class Changing(Good):
    def of(self, task: TransformTask, fold: Fold) -> Tensor:
        task.weights[fold.linears[0]].add_(1)
        return super().of(task, fold)


class Elsewhere(Good):
    def transform(self, task: TransformTask, config: MethodConfig) -> Mapping[Fold, Scaled]:
        return {Fold(("mlp.up",), "another", "norm"): Scaled(torch.ones(128))}


class Refusing(Good):
    def problem(self, shape: tuple[int, int], config: MethodConfig) -> str | None:
        return "no layer will do"


class Bare(Good):
    def transform(self, task: TransformTask, config: MethodConfig) -> Any:
        return {fold: self.of(task, fold) for fold in task.folds}


def test_a_good_transform_conforms() -> None:
    assert check(Good()) == []


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Negative(), "not positive and finite everywhere"),
        (Short(), "gave no Scaled with a scale of 128 channels"),
        (Drawn(), "the same inputs gave other scales"),
        (Changing(), "changed its input weights.mlp.up"),
        (Elsewhere(), "which it was not offered"),
        (Refusing(), "`problem` reports one, but the block was transformed"),
        (Bare(), "gave no Scaled"),
    ],
)
def test_a_transform_that_breaks_the_contract_is_found(method: object, expected: str) -> None:
    assert expected in "\n".join(check(method))
