"""methods/conformance.py on methods that turn the residual stream."""

import pytest
import torch
from torch import Tensor

from trinity.methods.conformance import check
from trinity.methods.contract import MethodConfig
from trinity.methods.errors import ConfigError
from trinity.methods.quarot import QUAROT


class Good:
    name, paper, config = "good", "none", MethodConfig

    def problem(self, width: int, config: MethodConfig) -> str | None:
        return None

    def rotation(self, width: int, config: MethodConfig) -> Tensor:
        return torch.eye(width).flip(0)


class Stretching(Good):
    def rotation(self, width: int, config: MethodConfig) -> Tensor:
        return 2 * super().rotation(width, config)


class Narrow(Good):
    def rotation(self, width: int, config: MethodConfig) -> Tensor:
        return super().rotation(width - 1, config)


class Drawn(Good):
    def rotation(self, width: int, config: MethodConfig) -> Tensor:
        return torch.eye(width)[torch.randperm(width)]


class Failing(Good):
    def rotation(self, width: int, config: MethodConfig) -> Tensor:
        raise ZeroDivisionError("oops")


class Talking(Good):
    """Reports what it does all the same."""

    def problem(self, width: int, config: MethodConfig) -> str | None:
        return "too wide" if width > 64 else None


class Fitting(Good):
    def problem(self, width: int, config: MethodConfig) -> str | None:
        return "never"

    def rotation(self, width: int, config: MethodConfig) -> Tensor:
        raise ConfigError("never")


def test_good_ones_conform() -> None:
    assert check(Good()) == []
    assert check(QUAROT, options={"kind": "orthogonal"}) == []


@pytest.mark.parametrize(
    ("method", "violation"),
    [
        (Stretching(), "gave a matrix that is not orthogonal"),
        (Narrow(), "gave no matrix of that many rows and columns"),
        (Drawn(), "gave another matrix; take a seed in the config"),
        (Failing(), "raised ZeroDivisionError: oops"),
        (Talking(), "`problem` reports one, but there is a rotation"),
        (Fitting(), "nothing was tried: `problem` refuses every width (never)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Good) else "",
)
def test_what_breaks_the_contract_is_found(method: Good, violation: str) -> None:
    assert violation in "\n".join(check(method))
