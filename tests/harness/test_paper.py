import pytest

from trinity.harness import paper, plan
from trinity.harness.repro import planned_rows
from trinity.methods.errors import ConfigError

SLIM = paper.load("slim")
TABLE = SLIM.tables["table1"]
SHAPES = {
    "model.layers.0.self_attn.q_proj": (576, 576),
    "model.layers.0.mlp.down_proj": (576, 1536),
}


@pytest.mark.parametrize("profile", ["smoke", "embedded", "paper"])
def test_every_row_of_every_profile_is_a_valid_recipe(profile: str) -> None:
    found = SLIM.profiles[profile]
    shapes = SHAPES if profile != "paper" else {"model.decoder.layers.0.fc1": (3072, 768)}
    for data in found.data:
        for row, pattern in planned_rows(TABLE, ("*",)):
            recipe = paper.recipe(found, data, found.models[0], row, pattern)
            plan.make(recipe.compress, shapes)


def test_rows_with_a_pattern_are_run_for_each_pattern() -> None:
    names = [paper.recipe_name(row, pattern) for row, pattern in planned_rows(TABLE, ("*",))]
    assert names[:2] == ["dense", "slim-quant"]
    assert {"slim-lora-2of4", "slim-lora-50pct", "wanda-2of4", "magnitude-50pct"} <= set(names)
    assert len(names) == len(set(names))


def test_a_glob_picks_rows() -> None:
    names = [
        paper.recipe_name(row, pattern) for row, pattern in planned_rows(TABLE, ("slim-lora-q*",))
    ]
    assert names == ["slim-lora-q-2of4", "slim-lora-q-50pct"]
    with pytest.raises(ConfigError, match=r"matches no row.*naive-lora-2of4"):
        planned_rows(TABLE, ("nothing*",))


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [("dense", None, 56.6), ("slim-lora", "2:4", 51.15), ("magnitude", "50%", 47.03)],
)
def test_published_numbers_are_those_of_the_paper(
    name: str, pattern: str | None, expected: float
) -> None:
    """LLaMA-2-7B, Table 1 of arXiv:2410.09615."""
    row = next(row for row in TABLE.rows if row.name == name)
    assert paper.published(TABLE, row, pattern, "LLaMA-2-7B") == expected


def test_a_model_that_is_not_in_the_paper_has_no_published_number() -> None:
    assert paper.published(TABLE, TABLE.rows[0], None, None) is None
    assert paper.published(TABLE, TABLE.rows[0], None, "SmolLM2") is None


def test_every_published_key_of_a_row_is_in_the_file() -> None:
    for row, pattern in planned_rows(TABLE, ("*",)):
        if row.published:
            assert paper.published(TABLE, row, pattern, "OPT-125M") is not None, row.name


def test_an_unknown_paper_comes_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"paper 'slm'.*Did you mean slim"):
        paper.load("slm")
