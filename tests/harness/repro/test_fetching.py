"""harness/repro/fetching.py: everything that a recipe reads is fetched."""

from huggingface_hub.errors import OfflineModeIsEnabled

from trinity.harness.recipes import recipe
from trinity.harness.repro import fetching
from trinity.harness.repro.fetching import Got
from trinity.methods.errors import ConfigError, MachineError


def test_the_model_that_a_recipe_compares_with_is_fetched_too() -> None:
    read = recipe.parse({"model": {"id": "a/packed", "dense": "a/dense"}}, "test")
    assert [model.id for model in fetching.of_recipes([read], "").models] == ["a/packed", "a/dense"]


def _unanswered(what: str) -> Got:
    error = MachineError(f"{what}: the hub cannot be reached.")
    error.__cause__ = OfflineModeIsEnabled("no network")
    return Got(what, "", 0, error)


def test_a_hub_that_does_not_answer_is_said_once() -> None:
    error = fetching.incomplete([_unanswered("model a/b"), _unanswered("text c4")])
    assert isinstance(error, MachineError)
    assert str(error) == "2 of 2 are missing. model a/b: the hub cannot be reached."


def test_other_reasons_are_all_said() -> None:
    wrong = Got("model a/c", "", 0, ConfigError("model a/c: there is none."))
    here = Got("text pydoc", "this machine", 9)
    error = fetching.incomplete([here, _unanswered("model a/b"), wrong])
    assert str(error) == (
        "2 of 3 are missing. model a/b: the hub cannot be reached. model a/c: there is none."
    )
