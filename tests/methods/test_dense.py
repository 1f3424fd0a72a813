"""methods/dense.py."""

import pytest
import torch

from tests.methods.samples import GridCase, random_quantized
from trinity.methods import registry
from trinity.methods.contract import LayerStats
from trinity.methods.dense import DENSE, DenseConfig
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Dense


def test_dense_returns_what_it_was_given() -> None:
    W = torch.randn(3, 5)
    for current in (Dense(W), random_quantized(3, 5, GridCase(4))):
        assert DENSE.compress(W, current, LayerStats(), DenseConfig()) is current


def test_dense_has_no_options_and_says_so() -> None:
    with pytest.raises(ConfigError, match=r"'dense' has no option bits\. It has no options"):
        registry.configure("dense", {"bits": 4})


def test_dense_fits_every_layer() -> None:
    assert DENSE.problem((1, 1), DenseConfig()) is None
