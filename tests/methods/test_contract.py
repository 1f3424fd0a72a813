"""methods/contract.py."""

import pytest
import torch
from pydantic import ValidationError

from trinity.methods.contract import LayerStats, MethodConfig, Statistic
from trinity.methods.errors import ConfigError


class Options(MethodConfig):
    strength: float = 0.5


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Options().strength = 1.0  # type: ignore[misc]


def test_a_config_refuses_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="strenght"):
        Options.model_validate({"strenght": 1.0})


def test_what_several_steps_need_is_the_union() -> None:
    needs = Statistic.NOTHING | Statistic.X_NORM | Statistic.HESSIAN
    assert Statistic.X_NORM in needs
    assert Statistic.ACTIVATIONS not in needs
    assert not Statistic.NOTHING


def test_statistics_that_were_not_asked_for_are_none() -> None:
    stats = LayerStats()
    assert (stats.tokens, stats.x_norm, stats.x_mean_abs, stats.H, stats.X) == (0, *[None] * 4)


@pytest.mark.parametrize("name", ["x_norm", "x_mean_abs", "H", "X", "H_held_out"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused_by_name(name: str, bad: float) -> None:
    values = torch.ones(2, 2) if name in ("H", "X") else torch.ones(2)
    values.view(-1)[1] = bad
    with pytest.raises(ConfigError, match=f"calibration statistics: {name} holds NaN or infinity"):
        LayerStats(**{name: values})  # type: ignore[arg-type]  # one of four tensors
