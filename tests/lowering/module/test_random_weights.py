"""Random weights have the format that was asked for."""

from dataclasses import replace

import pytest

from trinity.lowering.module.random_weights import random_weight
from trinity.lowering.targets import coverage
from trinity.methods.errors import UnsupportedError
from trinity.methods.formats import WeightFormat, format_of

FORMATS = [of for of in coverage.formats() if not (of.grid and of.grid.indexed)]


@pytest.mark.parametrize("weight_format", FORMATS, ids=lambda f: f.label)
def test_a_random_weight_has_the_format_asked_for(weight_format: WeightFormat) -> None:
    assert format_of(random_weight(weight_format)) == replace(weight_format, inputs=None)


def test_a_format_of_which_no_random_weight_can_be_made_is_refused_by_name() -> None:
    indexed = next(of for of in coverage.formats() if of.grid and of.grid.indexed)
    with pytest.raises(UnsupportedError, match="by index"):
        random_weight(indexed)
