"""A method's options in the words of a recipe: type, choices, default, what the docstring says."""

import inspect
import re
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from trinity.methods import sample_layers
from trinity.methods.contract import MethodConfig
from trinity.methods.formats import NM, Unstructured

WORDS: dict[object, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    type(None): "null",
    NM: "N:M ('2:4')",
    Unstructured: "a share of zeros ('50%')",
}
# How pydantic names the bounds of a number.
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class Option:
    """One option.

    type: in words   choices: where only some values are allowed   default: as YAML, None if the
    option is required   about: what the docstring says, units among it
    """

    name: str
    type: str
    choices: list[str] | None
    default: str | None
    required: bool
    about: str


def options_of(schema: type[MethodConfig]) -> list[Option]:
    """Every option of a method, in the order of its config."""
    example = sample_layers.example_config(schema, None)
    # Of a valid config, so that defaults come in the form of a recipe.
    defaults = example.model_dump(mode="json") if example else {}
    about = explained(schema)
    found = []
    for name, field in schema.model_fields.items():
        default = defaults.get(name, field.get_default(call_default_factory=True))
        found.append(
            Option(
                name,
                _words(field.annotation, _bounds(field.metadata)),
                _choices(field.annotation),
                None if field.is_required() else as_yaml(default),
                field.is_required(),
                about.get(name, field.description or ""),
            )
        )
    return found


def as_step(name: str, options: Iterable[Option], schema: type[MethodConfig]) -> str:
    """The shortest step of a recipe: the method, and an example of every required option."""
    example = sample_layers.example_config(schema, None)
    values = example.model_dump(mode="json") if example else {}
    required = {o.name: values.get(o.name, "...") for o in options if o.required}
    return "- " + as_yaml({"method": name, **required})


def as_yaml(value: Any) -> str:
    """A value on one line, as a recipe writes it; of a plugin's option, hence Any."""
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    except yaml.YAMLError:
        return repr(value)
    return text.removesuffix("...\n").strip()


def explained(schema: type[MethodConfig]) -> dict[str, str]:
    """What the docstrings of a config and of those it extends say of each option."""
    found: dict[str, str] = {}
    names = sorted(schema.model_fields, key=len, reverse=True)
    start = re.compile(
        rf"(?:^|\n\s*|\s{{2,}})((?:{'|'.join(names)})(?:, (?:{'|'.join(names)}))*): "
    )
    for kind in reversed(schema.__mro__):
        if not names or not issubclass(kind, BaseModel) or "__doc__" not in vars(kind):
            continue
        _, *parts = start.split(inspect.cleandoc(kind.__doc__ or ""))
        for listed, text in zip(parts[::2], parts[1::2], strict=True):
            found |= dict.fromkeys(listed.split(", "), " ".join(text.split()))
    return found


def _words(kind: object, bounds: str = "") -> str:
    origin = get_origin(kind)
    if origin is Annotated:
        inner, *metadata = get_args(kind)
        return _words(inner, _bounds(metadata))
    if origin is Literal or origin in (Union, types.UnionType):
        return _listed(list(_alternatives(kind, bounds)))
    if origin in (tuple, list, set, frozenset):
        parts = [_words(part) for part in get_args(kind) if part is not Ellipsis]
        return f"list of {_listed(parts)}" if parts else "list"
    if isinstance(kind, type) and kind in (int, float) and bounds:
        return f"{WORDS[kind]} {bounds}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"mapping of {', '.join(kind.model_fields)}"
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _alternatives(kind: object, bounds: str) -> Iterator[str]:
    """The parts of a union, and of the unions and literals inside."""
    origin = get_origin(kind)
    if origin is Literal:
        yield from (as_yaml(value) for value in get_args(kind))
    elif origin in (Union, types.UnionType):
        for part in get_args(kind):
            yield from _alternatives(part, bounds)
    else:
        yield _words(kind, bounds)


def _bounds(metadata: Iterable[object]) -> str:
    """'> 0 and <= 1'."""
    # A `Field(...)` inside of a union keeps its bounds in metadata of its own.
    flat = [part for item in metadata for part in (item, *getattr(item, "metadata", ()))]
    found = [
        f"{sign} {getattr(item, name):g}"
        for item in flat
        for name, sign in BOUNDS.items()
        if isinstance(getattr(item, name, None), (int, float))
    ]
    return " and ".join(found)


def _choices(kind: object) -> list[str] | None:
    """The values of an option that has only some, as a recipe writes them."""
    if get_origin(kind) is Annotated:
        return _choices(get_args(kind)[0])
    return [as_yaml(value) for value in get_args(kind)] if get_origin(kind) is Literal else None


def _listed(parts: list[str]) -> str:
    *others, last = dict.fromkeys(parts)
    return f"{', '.join(others)} or {last}" if others else last
