"""What a method declares, before it is run: its attributes and its options.  For `conformance`."""

import re
from typing import NamedTuple

from pydantic import ValidationError

from trinity.methods.caching import CacheMethod
from trinity.methods.contract import (
    BlockMethod,
    CheckpointSource,
    Method,
    MethodConfig,
    ModelMethod,
    Statistic,
)
from trinity.methods.planning import PlanMethod
from trinity.methods.rotations import RotationMethod
from trinity.methods.searching import SearchMethod
from trinity.methods.transforms import TransformMethod

Registered = (
    Method[MethodConfig]
    | BlockMethod[MethodConfig]
    | TransformMethod[MethodConfig]
    | PlanMethod[MethodConfig]
    | RotationMethod[MethodConfig]
    | SearchMethod[MethodConfig]
    | CacheMethod[MethodConfig]
    | ModelMethod[MethodConfig]
    | CheckpointSource[MethodConfig]
)
KINDS = (
    *(Method, BlockMethod, TransformMethod, PlanMethod, SearchMethod, RotationMethod),
    *(CacheMethod, ModelMethod, CheckpointSource),
)


class Violation(NamedTuple):
    """What a method breaks, and where it was seen: on which sample, or in no certain place."""

    what: str
    where: str = ""


def told_once(violations: list[Violation]) -> list[str]:
    """One line for what is the same but for its numbers, with the number of cases."""
    same: dict[str, list[Violation]] = {}
    for violation in violations:
        same.setdefault(re.sub(r"\d+(\.\d+)?", "0", violation.what), []).append(violation)
    return [
        (f"{first.where}{_more(len(others))}: " if first.where else "") + first.what
        for first, *others in same.values()
    ]


def _more(cases: int) -> str:
    return f" and {cases} more case{'s' if cases > 1 else ''}" if cases else ""


def attribute_violations(method: object) -> list[Violation]:
    """What is missing, or holds something else than a kind of method has."""
    if isinstance(method, type):
        return [Violation(f"{method.__name__} is a class; register an instance of it")]
    if not isinstance(method, KINDS):
        what = (
            f"{type(method).__name__} lacks attributes of a Method (name, paper, config, needs, "
            f"problem, compress), of a BlockMethod (compress_block), of a TransformMethod "
            f"(transform), of a PlanMethod (measure, allot), of a SearchMethod (levels, rounds, "
            f"reads, improve), of a RotationMethod (rotation), of a CacheMethod (cache_problem, "
            f"cache_format, rounded_cache), of a ModelMethod (compress_model) or of a "
            f"CheckpointSource (parts, load)"
        )
        return [Violation(what)]
    found = [Violation(what) for what in of_wrong_types(method)]
    name: object = method.name  # a plugin may have put anything there
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        found.append(Violation(f"name: {name!r} is not lower-case words joined by hyphens"))
    if method.paper == "":
        found.append(Violation("paper: '' does not say where the method is from"))
    if isinstance(method, CheckpointSource):
        parts: object = method.parts
        if not isinstance(parts, tuple) or not parts or not all(type(p) is str for p in parts):
            found.append(
                Violation(f"parts: {parts!r} is not a tuple of the last words of tensor names")
            )
    return found


def of_wrong_types(method: Registered) -> list[str]:
    """Attributes that hold something else than a method's: a protocol looks at names alone."""
    # A plugin may have put anything there, hence the objects.
    paper: object = method.paper
    config: object = method.config
    needs: object = getattr(method, "needs", Statistic.NOTHING)
    found = []
    if not isinstance(paper, str):
        found.append(f"paper: {paper!r} does not say where the method is from")
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        found.append(f"config: {config!r} is not a subclass of MethodConfig")
    if not isinstance(needs, Statistic):
        found.append(f"needs: {needs!r} is not a Statistic")
    return found


def config_violations(config: MethodConfig) -> list[Violation]:
    """Options that can be changed, take unknown keys, or are lost on the way through a recipe."""
    schema, found = type(config), []
    data = config.model_dump(mode="json")
    try:
        schema.model_validate({**data, "no_such_option": 1})
        found.append(Violation("config: accepts unknown keys (extra='forbid' was overridden)"))
    except ValidationError:
        pass
    name = next(iter(schema.model_fields), "no_such_option")
    try:
        setattr(config, name, getattr(config, name, 1))
        found.append(
            Violation("config: can be changed after it was made (frozen=True was overridden)")
        )
    except (ValidationError, AttributeError):
        pass
    try:
        if schema.model_validate(data) != config:
            found.append(Violation("config: is another one after model_dump(mode='json') and back"))
    except ValidationError as error:
        found.append(Violation(f"config: its own model_dump(mode='json') is refused ({error})"))
    return found
