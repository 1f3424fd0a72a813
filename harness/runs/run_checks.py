"""What a recipe's sections ask of each other and of its model, checked before anything is done."""

from pathlib import Path

from trinity.harness.accuracy import suites
from trinity.harness.compress.plan import Plan
from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.recipes.recipe import CalibrationSpec, Recipe
from trinity.harness.texts import default_text
from trinity.methods.errors import ConfigError


def tuning_text(recipe: Recipe) -> CalibrationSpec | None:
    """The text that the whole model is tuned on: its own, or the calibration's."""
    spec = recipe.compress.tune
    return (spec.data if spec else None) or recipe.calibration


def check_texts(recipe: Recipe, plan: Plan, context: int) -> None:
    """Refuse texts that are missing, or asked for in windows longer than the model's context."""
    spec, text = recipe.calibration, tuning_text(recipe)
    for where, found in (("calibration", spec), ("compress.tune.data", text)):
        if found:
            default_text.bounded(found, context, where)
    asked = recipe.evaluate.suites if recipe.evaluate else ()
    suites.check_resolution(asked)
    for suite in asked:
        suites.bounded(suite, context)
    if plan.tune and text is None:
        msg = (
            f"compress.tune: {plan.tune.name} needs text, and the recipe has neither "
            f"`compress.tune.data:` nor `calibration:`."
        )
        raise ConfigError(msg)
    if spec is None and (plan.needs or any(step.needs for step in plan.planners)):
        names = sorted({s.name for steps in plan.steps.values() for s in steps if s.method.needs})
        msg = (
            f"method {', '.join(names)} needs calibration data, and the recipe has no "
            f"`calibration:`."
        )
        raise ConfigError(msg)


def check_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Refuse a tokenizer that cannot be read, in the folder that the user knows, where text is."""
    if recipe.evaluate or tuning_text(recipe):
        tokenizer_of(folder)


def compares(recipe: Recipe) -> bool:
    """Whether something is measured against the model before compression."""
    timed = recipe.bench is not None and recipe.bench.baseline == "dense"
    asked = recipe.evaluate.suites if recipe.evaluate else ()
    return timed or any(suites.resolve(spec).needs_dense for spec in asked)


def check_dense_is_known(recipe: Recipe, plan: Plan) -> None:
    """What compares with the model before compression needs one: a source's files hold none."""
    if plan.source and not recipe.model.dense and compares(recipe):
        msg = (
            f"{recipe.name}: {plan.source.name} reads weights that were compressed elsewhere, so "
            f"the model before compression is not known, and a suite or baseline compares with "
            f"it. Name it under `model:`, as `dense:`."
        )
        raise ConfigError(msg)
