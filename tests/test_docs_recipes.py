"""Every recipe in the documentation is one, and those of a tiny model that pages tell to run do."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from trinity.harness.compress import plan
from trinity.harness.recipes import recipe
from trinity.harness.recipes.yaml_loaders import RecipeLoader
from trinity.harness.runs.run import Run
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter

PROJECT_ROOT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT_ROOT / "README.md", *sorted((PROJECT_ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Some pages show a part of a recipe: the rest is the reader's.
REST = {
    "model": {"id": "random:tiny-llama"},
    "calibration": {"dataset": "pydoc", "samples": 4, "seqlen": 64, "rule": "concatenated"},
}
WIDE = {"model.layers.0.self_attn.q_proj": (512, 512), "model.layers.0.mlp.down_proj": (512, 1024)}
# Their recipes have a method of the reader's; tests of their own follow these pages.
WITH_A_PLUGIN = ["docs/adding-a-method.md", "docs/tracking.md"]
OF_THE_HUB = ["docs/trinity.md", "docs/methods/beam.md", "docs/methods/patch.md"]


def recipes() -> list[tuple[str, dict[str, Any]]]:
    """(page, recipe or a part of one) of every block of YAML that compresses."""
    found = []
    for page in PAGES:
        for block in FENCE.finditer(page.read_text(encoding="utf-8")):
            data = yaml.load(block[1], Loader=RecipeLoader)
            name = str(page.relative_to(PROJECT_ROOT))
            if "compress" in data and name not in WITH_A_PLUGIN:
                found.append((name, data))
    return found


@pytest.mark.parametrize(
    "data", [pytest.param(data, id=f"{page}-{n}") for n, (page, data) in enumerate(recipes())]
)
def test_every_recipe_is_one(data: dict[str, Any]) -> None:
    plan.make(recipe.parse(REST | data, "a page").compress, WIDE)


@pytest.mark.parametrize("page", OF_THE_HUB)
def test_the_recipes_of_the_hub_run(page: str, tmp_path: Path) -> None:
    (data,) = [data for name, data in recipes() if name == page]
    asked = recipe.parse({"name": "page", **data}, page)
    record = Run(asked, StageStore(tmp_path), Reporter(quiet=True)).finish().record
    (measured,) = record.measurements
    assert measured.value is not None
    assert record.recipe["compress"]["tune"]["method"] in ("beam", "patch")
