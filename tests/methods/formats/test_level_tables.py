"""methods/formats/level_tables.py."""

from itertools import pairwise

import pytest
import torch

from tests.oracles import codebooks as oracle
from trinity.methods.errors import ConfigError
from trinity.methods.formats.level_tables import (
    TABLES,
    bits_of,
    largest,
    levels,
    nearest_codes,
    zero_code,
)


def test_nf4_is_the_quantiles_of_a_normal_distribution() -> None:
    assert levels("nf4").tolist() == pytest.approx(oracle.quantiles(), abs=2e-7)


def test_e2m1_is_the_published_levels_by_sign_and_bits() -> None:
    assert levels("e2m1").tolist() == oracle.E2M1 + [-level for level in oracle.E2M1]
    assert levels("e2m1").tolist() == [oracle.small_float(code, 2, 1) for code in range(16)]


def test_e4m3_is_every_number_of_its_bits_and_nothing_for_nan() -> None:
    found = levels("e4m3")
    assert found[~found.isnan()].tolist() == oracle.e4m3()
    assert found.isnan().nonzero().flatten().tolist() == [127, 255]


@pytest.mark.parametrize("table", TABLES)
def test_rounding_finds_the_nearest_level(table: str) -> None:
    x = torch.cat([torch.randn(500) * largest(table) / 2, torch.tensor([-1e9, 1e9, 0.0])])
    known = [level for level in levels(table).tolist() if level == level]
    found = levels(table)[nearest_codes(x, table).int()]
    for given, level in zip(x.tolist(), found.tolist(), strict=True):
        assert abs(level - given) == oracle.distance(given, 1.0, known)


@pytest.mark.parametrize("table", TABLES)
def test_of_two_levels_equally_near_the_even_code_is_taken(table: str) -> None:
    rising = sorted({level for level in levels(table).tolist() if level == level})
    middles = torch.tensor([(a + b) / 2 for a, b in pairwise(rising)])
    assert not bool((nearest_codes(middles, table) % 2).any())


@pytest.mark.parametrize("table", TABLES)
def test_zero_is_a_level_and_its_code_is_the_one_that_rounding_gives(table: str) -> None:
    assert levels(table)[zero_code(table)] == 0
    assert nearest_codes(torch.zeros(1), table).item() == zero_code(table)


def test_a_table_that_is_not_known_is_named_with_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match=r"table 'nf5' is not nf4, e2m1, e4m3. Did you mean nf4"):
        bits_of("nf5")
