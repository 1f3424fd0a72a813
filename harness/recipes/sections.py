"""What a user writes in YAML, as frozen data: every unknown key refused, with the nearest one."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from trinity.harness.recipes.yaml_loaders import RecipeLoader, RepeatedKeyError
from trinity.methods.errors import ConfigError, nearest


class Section(BaseModel):
    """Base of every part of a file that a user writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Kind = TypeVar("Kind", bound=Section)


def read_mapping(path: Path, what: str, key: str) -> dict[str, Any]:
    """The keys of a YAML file.  what: the file is, 'recipe'   key: that it must have"""
    try:
        data = yaml.load(_text_of(path, what), Loader=RecipeLoader)
    except RepeatedKeyError as error:
        msg = f"{what} {path}: {error}."
        raise ConfigError(msg) from error
    except yaml.YAMLError as error:
        msg = f"{what} {path}: is not YAML ({' '.join(str(error).split())})."
        raise ConfigError(msg) from error
    if not isinstance(data, dict):
        msg = f"{what} {path}: expected a mapping with a `{key}:` key, found {type(data).__name__}."
        raise ConfigError(msg)
    return data


def parse(kind: type[Kind], data: dict[str, Any], where: str) -> Kind:
    """Plain data to what it stands for; ConfigError lists every wrong key with the nearest one."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = [_problem(item, kind) for item in error.errors()]
        msg = f"{where}: {' '.join(problems)}"
        raise ConfigError(msg) from error


def _text_of(path: Path, what: str) -> str:
    """A file's text; ConfigError says which byte is no UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"{what} {path}: cannot be read ({error.strerror})."
        raise ConfigError(msg) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        lines, byte = content[: error.start].split(b"\n"), content[error.start]
        msg = (
            f"{what} {path}: is not UTF-8: byte 0x{byte:02x} in line {len(lines)}, after "
            f"{len(lines[-1])} bytes. Save it as UTF-8."
        )
        raise ConfigError(msg) from error


def _problem(item: ErrorDetails, kind: type[Section]) -> str:
    where = item["loc"]
    path = ".".join(map(str, where))
    if item["type"] == "missing":
        return f"`{path}` is missing."
    if item["type"] != "extra_forbidden":
        return f"`{path}`: {item['msg'].removeprefix('Input ')}, found {item['input']!r}."
    section: Any = kind
    for key in where[:-1]:
        field = getattr(section, "model_fields", {}).get(key)
        section = _section_of(field.annotation) if field else section
    known = list(getattr(section, "model_fields", {}))
    return f"unknown key `{path}`.{nearest(str(where[-1]), known)} Keys here: {', '.join(known)}."


def _section_of(annotation: Any) -> Any:
    """The section class inside `Section | None` or `tuple[Section, ...]`."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
