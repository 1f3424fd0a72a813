"""methods/owl.py."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.methods.hessians import exact
from trinity.methods.contract import LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.owl import OWL, OwlConfig, densities, outlier_ratio
from trinity.methods.planning import Measured


def blocks(ratios: list[float]) -> list[dict[str, Measured]]:
    return [
        {f"{i}.{name}": Measured((8, 16), {"outlier_ratio": ratio}) for name in ("q", "down")}
        for i, ratio in enumerate(ratios)
    ]


def sparsities(ratios: list[float], pattern: str = "60%", **options: Any) -> list[float]:
    config = OwlConfig.model_validate(options)
    found = OWL.allot(blocks(ratios), {"pattern": pattern}, config)
    assert len({options["pattern"] for name, options in found.items() if name[0] == "0"}) == 1
    return [float(found[f"{i}.q"]["pattern"].rstrip("%")) / 100 for i in range(len(ratios))]


def test_the_ratio_is_the_share_of_a_blocks_scores_far_above_their_mean() -> None:
    """Oracle: a plain loop in float64 over all scores of the block together."""
    weights = {"q": torch.randn(6, 16) ** 3, "down": 4 * torch.randn(5, 24) ** 3}
    x_norm: dict[str, Tensor] = {name: torch.rand(W.shape[1]) for name, W in weights.items()}
    stats = {name: LayerStats(x_norm=x) for name, x in x_norm.items()}
    found = OWL.measure(weights, stats, OwlConfig(times=3))
    scores = [
        abs(w) * x
        for name, W in weights.items()
        for row in exact(W)
        for w, x in zip(row, exact(x_norm[name]), strict=True)
    ]
    above = sum(score > 3 * np.mean(scores) for score in scores) / len(scores)
    assert found == {name: {"outlier_ratio": pytest.approx(above)} for name in weights}
    assert above > 0


def test_blocks_with_more_outliers_keep_more_and_the_mean_is_what_was_asked_for() -> None:
    ratios = [0.04, 0.01, 0.02, 0.05]
    found = sparsities(ratios, spread=0.08)
    assert sorted(range(4), key=lambda i: found[i]) == [3, 0, 2, 1]
    assert np.mean(found) == pytest.approx(0.6, abs=1e-5)
    assert max(found) - min(found) == pytest.approx(0.16, abs=1e-5)
    share = (ratios[0] - 0.01) / 0.04
    assert found[1] - found[0] == pytest.approx(0.16 * share, abs=1e-5)


def test_equal_blocks_and_no_spread_get_the_same_sparsity() -> None:
    assert sparsities([0.02, 0.02]) == [0.6, 0.6]
    assert sparsities([0.01, 0.02], spread=0) == [0.6, 0.6]


def test_ratios_do_not_depend_on_the_size_of_scores() -> None:
    S = [torch.rand(8, 16) ** 6]
    assert outlier_ratio(S, 5) == outlier_ratio([S[0] * 1024], 5) > 0


def test_densities_beyond_what_a_mask_can_be_are_refused() -> None:
    assert min(densities([0, 1], 0.95, 0.1)) < 0
    with pytest.raises(ConfigError, match=r"owl: a block would keep -5\.0% .* owl\.spread"):
        sparsities([0.0, 1.0], "95%", spread=0.1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"pattern": "2:4"}, "has the pattern 2:4"), ({"bits": 4}, "has no option `pattern`")],
)
def test_the_step_after_it_must_take_an_unstructured_pattern(
    given: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        OWL.allot(blocks([0.1, 0.2]), given, OwlConfig())
