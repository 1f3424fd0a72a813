"""methods/smoothquant.py."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.hessians import exact
from trinity.methods.contract import LayerStats, Statistic, needed
from trinity.methods.errors import ConfigError
from trinity.methods.formats.inputs import InputFormat
from trinity.methods.smoothquant import SMOOTHQUANT, SmoothQuantConfig
from trinity.methods.tensors import clipped
from trinity.methods.transforms import Fold, TransformTask

NORM = Fold(("q", "k"), "norm", "norm")
LINEAR = Fold(("down",), "up", "linear")


def task(X: Tensor | None, weights: dict[str, Tensor]) -> TransformTask:
    largest = None if X is None else X.abs().amax(0)
    cut = None if X is None else clipped(X).abs().amax(0)
    stats = LayerStats(x_max_abs=largest, x_max_abs_clipped=cut)
    return TransformTask(
        weights, dict.fromkeys(weights, stats), (NORM, LINEAR), (), lambda weights, x: x
    )


def layers() -> dict[str, Tensor]:
    return {"q": torch.randn(6, 16), "k": torch.randn(4, 16), "down": torch.randn(8, 16)}


def outliers() -> Tensor:
    """Inputs of which two channels are a hundred times as large."""
    X = torch.randn(200, 16)
    X[:, [3, 7]] *= 100
    return X


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_every_scale_is_that_of_the_formula(alpha: float) -> None:
    """Oracle: a plain loop over channels in float64."""
    X, weights = outliers(), layers()
    found = SMOOTHQUANT.transform(task(X, weights), SmoothQuantConfig(alpha=alpha))[NORM].scale
    for j in range(16):
        largest = max(abs(float(x)) for x in exact(X)[:, j])
        w = max(abs(float(v)) for name in NORM.linears for v in exact(weights[name])[:, j])
        assert float(found[j]) == pytest.approx(largest**alpha / w ** (1 - alpha), rel=1e-5)


def test_clipped_inputs_give_the_scales_of_their_own_largest() -> None:
    """200 x 16 inputs: the 32 largest are cut to the smallest of them."""
    X, weights = outliers(), layers()
    config = SmoothQuantConfig(inputs="clipped")
    found = SMOOTHQUANT.transform(task(X, weights), config)[NORM].scale
    limit = np.sort(np.abs(exact(X)).ravel())[-32]
    for j in range(16):
        largest = min(limit, np.abs(exact(X)[:, j]).max())
        w = max(float(np.abs(exact(weights[name])[:, j]).max()) for name in NORM.linears)
        assert float(found[j]) == pytest.approx((largest / w) ** 0.5, rel=1e-5)
    assert Statistic.X_MAX_ABS_CLIPPED in needed(SMOOTHQUANT, config)
    assert Statistic.X_MAX_ABS_CLIPPED not in needed(SMOOTHQUANT, SmoothQuantConfig())


def test_only_norms_take_scales_unless_all_places_are_asked_for() -> None:
    given = task(outliers(), layers())
    assert set(SMOOTHQUANT.transform(given, SmoothQuantConfig())) == {NORM}
    assert set(SMOOTHQUANT.transform(given, SmoothQuantConfig(into="all"))) == {NORM, LINEAR}


def test_rounded_inputs_lose_less_after_it() -> None:
    X, weights = outliers(), layers()
    s = SMOOTHQUANT.transform(task(X, weights), SmoothQuantConfig())[NORM].scale
    rounded = InputFormat("int8").rounded
    W = weights["q"]
    plain = (rounded(X) @ W.T - X @ W.T).norm()
    smooth = (rounded(X / s) @ (W * s).T - X @ W.T).norm()
    assert smooth < 0.5 * plain


def test_channels_that_nothing_sends_or_reads_have_a_scale_too() -> None:
    X, weights = outliers(), layers()
    X[:, 0] = 0
    for W in weights.values():
        W[:, 1] = 0
    s = SMOOTHQUANT.transform(task(X, weights), SmoothQuantConfig())[NORM].scale
    assert np.isfinite(exact(s)).all()
    assert float(s[0]) == pytest.approx(1e-5)
    assert float(s[1]) == 1


def test_without_calibration_it_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="smoothquant: needs the largest inputs"):
        SMOOTHQUANT.transform(task(None, layers()), SmoothQuantConfig())
