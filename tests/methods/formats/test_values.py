"""methods/formats/values.py: what every kind of values holds to."""

from dataclasses import replace

import pytest
import torch

from tests.methods.samples import (
    GridCase,
    indexed,
    random_coded,
    random_nested,
    random_quantized,
    random_row_coded,
    random_sign_sum,
    random_vectors,
)
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Dense
from trinity.methods.formats.values import Values

OUT, IN = 6, 24


def kinds() -> list[Values]:
    """Values of every kind."""
    grid = random_quantized(OUT, IN, GridCase(4, groups=3))
    return [
        Dense(torch.randn(OUT, IN)),
        Dense(torch.randn(OUT, IN).bfloat16()),
        grid,
        random_quantized(OUT, IN, GridCase(3, symmetric=False, groups=1)),
        replace(grid, input_scale=torch.rand(IN) + 0.5),
        indexed(grid, 5),
        random_coded(OUT, IN, "nf4", 3, torch.float16),
        random_coded(OUT, IN, "e2m1", 3, torch.float8_e4m3fn, outer=True),
        random_coded(OUT, IN, "e4m3", 1, torch.float8_e8m0fnu),
        random_row_coded(OUT, IN, 3, torch.float16, OUT),
        random_nested(OUT, IN, 3, 3, rows=4),
        random_sign_sum(OUT, IN, 3, 2, torch.float16),
    ]


def whole() -> list[Values]:
    """Values whose entries have no code of their own, so that none can be removed."""
    return [random_vectors(OUT, IN, 8, 4, 2), random_vectors(OUT, IN, 12, 8, 1)]


def named(values: Values) -> str:
    return " ".join(values.values_format.words(IN))


@pytest.mark.parametrize("values", kinds() + whole(), ids=named)
def test_what_is_stored_comes_back_with_its_format(values: Values) -> None:
    again = values.values_format.restored((OUT, IN), values.stored())
    assert again.values_format == values.values_format
    assert torch.equal(again.dequantize(), values.dequantize())


@pytest.mark.parametrize("values", kinds(), ids=named)
def test_what_is_kept_of_them_comes_back_in_its_places(values: Values) -> None:
    mask = torch.rand(OUT, IN) > 0.5
    count = (int(mask.sum()),)
    again = values.values_format.restored_kept(mask, count, values.stored_kept(mask, count))
    assert again.values_format == values.values_format
    assert torch.equal(again.dequantize()[mask], values.dequantize()[mask])
    assert torch.equal(again.cleared(mask).dequantize(), values.cleared(mask).dequantize())


@pytest.mark.parametrize("values", whole(), ids=named)
def test_a_mask_over_entries_without_codes_of_their_own_is_refused(values: Values) -> None:
    mask = torch.rand(OUT, IN) > 0.5
    count = (int(mask.sum()),)
    with pytest.raises(ConfigError, match="mask"):
        values.cleared(mask)
    with pytest.raises(ConfigError, match="mask"):
        values.stored_kept(mask, count)
    with pytest.raises(ConfigError, match="mask"):
        values.values_format.restored_kept(mask, count, values.stored())


@pytest.mark.parametrize("values", kinds() + whole(), ids=named)
def test_rounding_what_they_stand_for_changes_nothing(values: Values) -> None:
    again = values.rounded(values.dequantize())
    assert again.values_format == values.values_format
    assert torch.equal(again.dequantize(), values.dequantize())


@pytest.mark.parametrize("values", kinds(), ids=named)
def test_clearing_leaves_what_is_kept_and_the_values_themselves(values: Values) -> None:
    mask = torch.rand(OUT, IN) > 0.5
    before = values.dequantize()
    cleared = values.cleared(mask)
    assert torch.equal(values.dequantize(), before)
    assert torch.equal(cleared.dequantize()[mask], before[mask])
