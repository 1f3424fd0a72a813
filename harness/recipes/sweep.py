"""Sweeps: many runs as one file, models x recipes x seeds x targets."""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from trinity.harness.recipes import recipe, sections
from trinity.harness.recipes.recipe import ModelSpec, Recipe
from trinity.harness.recipes.sections import Section
from trinity.methods.errors import ConfigError


class SweepSpec(Section):
    """What is combined; every combination is a run with a record.

    recipes: files, from the sweep's folder on
    models: ids, or the keys of a recipe's `model:`; each recipe's own if none is named
    seeds: of the calibration, for recipes that have one   targets: for recipes with `lower:`
    """

    recipes: tuple[str, ...] = Field(min_length=1)
    models: tuple[ModelSpec, ...] = ()
    seeds: tuple[int, ...] = ()
    targets: tuple[str, ...] = ()

    @field_validator("models", mode="before")
    @classmethod
    def _ids_are_models(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        return [{"id": item} if isinstance(item, str) else item for item in value]


def read(path: Path) -> list[Recipe]:
    """The runs of a sweep, in the order of their recipes; ConfigError for one that says nothing
    new, or for a list that no recipe heeds.

    A run is called like its recipe, and after it '-seed1' and '-vulkan' where these are listed.
    """
    found = sections.parse(SweepSpec, sections.read_mapping(path, "sweep", "recipes"), str(path))
    files = [path.parent / name for name in found.recipes]
    recipes = [{"name": f.stem, **sections.read_mapping(f, "recipe", "model")} for f in files]
    for key, section in (("seeds", "calibration"), ("targets", "lower")):
        if getattr(found, key) and not any(data.get(section) for data in recipes):
            msg = f"{path}: `{key}` says what `{section}:` is to be, and no recipe has that."
            raise ConfigError(msg)
    runs = [
        recipe.parse(of, str(file))
        for data, file in zip(recipes, files, strict=True)
        for of_model in _with_models(data, found.models)
        for of_seed in _with_seeds(of_model, found.seeds)
        for of in _with_targets(of_seed, found.targets)
    ]
    _check_each_once(path, runs)
    return runs


def _with_models(data: dict[str, Any], models: tuple[ModelSpec, ...]) -> list[dict[str, Any]]:
    """With each model; what a model does not say is as in the recipe."""
    if not models:
        return [data]
    own = data.get("model")
    kept = {k: v for k, v in own.items() if k == "dtype"} if isinstance(own, dict) else {}
    return [{**data, "model": kept | model.model_dump(exclude_unset=True)} for model in models]


def _with_seeds(data: dict[str, Any], seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """With each seed of the calibration; a recipe without calibration is one run."""
    text = data.get("calibration")
    if not seeds or not isinstance(text, dict):
        return [data]
    if text.get("seeds"):
        msg = f"recipe {data['name']}: `calibration.seeds` and the sweep's `seeds` exclude another."
        raise ConfigError(msg)
    return [
        {**data, "name": f"{data['name']}-seed{seed}", "calibration": {**text, "seed": seed}}
        for seed in seeds
    ]


def _with_targets(data: dict[str, Any], targets: tuple[str, ...]) -> list[dict[str, Any]]:
    """For each target; a recipe that lowers nothing is one run."""
    lower = data.get("lower")
    if not targets or not isinstance(lower, dict):
        return [data]
    return [
        {**data, "name": f"{data['name']}-{target}", "lower": {**lower, "target": target}}
        for target in targets
    ]


def _check_each_once(path: Path, runs: list[Recipe]) -> None:
    names = [(run.model.id, run.name) for run in runs]
    for model, name in names:
        if names.count((model, name)) > 1:
            msg = f"{path}: gives two runs the name {name} on {model}. Give each recipe its own."
            raise ConfigError(msg)
