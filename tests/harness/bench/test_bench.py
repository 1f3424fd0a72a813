from typing import get_args

from trinity.harness.bench.bench import SUITES
from trinity.harness.recipes.recipe import BenchSpec


def test_a_recipe_names_the_suites_that_there_are() -> None:
    (names, _) = get_args(BenchSpec.model_fields["suites"].annotation)
    assert get_args(names) == tuple(SUITES)
