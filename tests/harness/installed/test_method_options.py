"""`trinity methods show`: options as a recipe writes them."""

from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, PositiveInt

from trinity.harness.installed import method_options
from trinity.methods import registry
from trinity.methods.contract import MethodConfig
from trinity.methods.formats import NM
from trinity.methods.options import GroupSize, PatternOption


class Base(MethodConfig):
    """Nothing of its own.

    seed: of the generator
    """

    seed: int = 0


class Options(Base):
    """Defaults are a guess.

    pattern: what is kept   lr, decay: of a step, per second,
        over two lines
    """

    pattern: PatternOption
    lr: float = Field(default=0.5, gt=0, le=1)
    decay: Annotated[float, Field(ge=0)] | None = None
    mode: Literal["a", "b"] = "a"
    group: GroupSize = 128
    sizes: tuple[PositiveInt, ...] = (1, 2)
    exact: bool = False
    mask: PatternOption = NM(2, 4)


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("pattern", "N:M ('2:4') or a share of zeros ('50%')", None),
        ("lr", "number > 0 and <= 1", "0.5"),
        ("decay", "number >= 0 or null", "null"),
        ("mode", "a or b", "a"),
        ("group", "integer > 0, tensor or channel", "128"),
        ("sizes", "list of integer > 0", "[1, 2]"),
        ("exact", "true or false", "false"),
        ("mask", "N:M ('2:4') or a share of zeros ('50%')", "'2:4'"),
        ("seed", "integer", "0"),
    ],
)
def test_types_and_defaults_are_in_the_words_of_a_recipe(
    name: str, kind: str, default: str | None
) -> None:
    (option,) = [o for o in method_options.options_of(Options) if o.name == name]
    assert (option.type, option.default, option.required) == (kind, default, default is None)


def test_what_docstrings_say_is_found_with_what_is_inherited() -> None:
    assert method_options.explained(Options) == {
        "seed": "of the generator",
        "pattern": "what is kept",
        **dict.fromkeys(("lr", "decay"), "of a step, per second, over two lines"),
    }


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_the_step_that_is_shown_configures_the_method(name: str) -> None:
    schema = registry.get(name).config
    options = method_options.options_of(schema)
    (step,) = yaml.safe_load(method_options.as_step(name, options, schema))
    assert step.pop("method") == name
    assert registry.configure(name, step)
    for option in options:
        if option.default is not None:
            read = {option.name: yaml.safe_load(option.default)}
            assert registry.configure(name, step | read) == registry.configure(name, step)
