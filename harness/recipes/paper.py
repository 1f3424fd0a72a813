"""A paper's tables and profiles, read from `papers/*.yaml`, and the recipes they stand for."""

import csv
from functools import cache
from importlib import import_module
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from trinity.harness.recipes.recipe import (
    BenchSpec,
    CalibrationSpec,
    CompressSpec,
    EvaluateSpec,
    FileName,
    InputSpec,
    LowerSpec,
    Order,
    Recipe,
    Step,
    parse,
)
from trinity.harness.recipes.sections import Section
from trinity.harness.recipes.yaml_loaders import UniqueLoader
from trinity.methods.errors import ConfigError, nearest
from trinity.methods.plugins import OURS, Group

GROUP = "trinity.papers"


class PublishedKey(Section):
    """Which lines of the published file a row of ours is compared with.

    bits, adapter, finetuned: where the file has several for one method and quantization
    """

    method: str
    quantization: str
    bits: str | None = None
    adapter: str | None = None
    finetuned: Literal["yes", "no"] | None = None


class Row(Section):
    """One method of a table.  `steps`, `tune` and `training` may hold $pattern and the profile's
    $parameters.

    name: of its recipe; rows of one name are one run, also in tables of other papers
    order, skip, inputs, tune, cache: of the recipe's `compress`; the profile says on which text to
        tune
    patterns: of the table's, if not all of them   training: of a 'trained:' model
    """

    name: FileName
    label: str
    quantization: str
    steps: tuple[dict[str, Any], ...]
    order: Order = CompressSpec().order
    skip: tuple[str, ...] = CompressSpec().skip
    inputs: InputSpec | None = None
    tune: dict[str, Any] | None = None
    cache: Step | None = None
    patterns: tuple[str, ...] | None = None
    training: dict[str, Any] | None = None
    published: PublishedKey | None = None

    @property
    def is_dense(self) -> bool:
        """Whether it compresses nothing."""
        return not (self.steps or self.cache)

    @property
    def by_pattern(self) -> bool:
        """Whether the row is run once for each sparsity pattern."""
        options = (*self.steps, self.tune or {}, self.training or {})
        return any("$pattern" in str(value) for step in options for value in step.values())


class Protocol(Section):
    """How the paper measured; what it does not state is left out and not compared.

    seqlen: of its perplexities   tasks: of its average, lm-eval's names   task_versions: lm-eval's
    """

    seqlen: int | None = None
    tasks: tuple[str, ...] = ()
    task_versions: dict[str, str] = Field(default_factory=dict)


class Table(Section):
    """A table's layout: rows of methods, one part for each pattern.

    published: file of the paper's numbers, if it has any
    published_table: the file's lines of this table alone
    published_as: our measurement's name -> the file's, beside those that are known
    reference: the paper's model whose numbers stand beside ours where the paper has none for ours
    timed: False for a table of accuracies, whose recipes neither compile nor time
    note: a sentence for the caption
    """

    title: str
    published: str | None = None
    published_table: str | None = None
    published_as: dict[str, str] = Field(default_factory=dict)
    reference: str | None = None
    timed: bool = True
    note: str = ""
    protocol: Protocol = Protocol()
    patterns: dict[str, str]
    rows: tuple[Row, ...]
    missing: tuple[str, ...] = ()


class Data(Section):
    """Texts and tasks that a profile may take its numbers on.

    hub: they are to be had from the Hugging Face hub, so they need it rather than local files
    tune: the text that rows with `tune` are tuned on, the calibration text if None
    """

    hub: bool = False
    calibration: CalibrationSpec
    tune: CalibrationSpec | None = None
    evaluate: EvaluateSpec


class Profile(Section):
    """How a table is filled on a kind of machine.

    tables: those that are filled unless `--table` asks for another; None for all
    rows: globs of the rows that are run unless `--rows` asks for others
    """

    summary: str
    tables: tuple[str, ...] | None = None
    rows: tuple[str, ...] = ("*",)
    models: tuple[str, ...]
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: tuple[Data, ...]
    dtype: str = "float32"
    lower: LowerSpec | None = None
    bench: BenchSpec | None = None
    needs: tuple[str, ...] = ()
    published_names: dict[str, str] = Field(default_factory=dict)


class Paper(Section):
    """A paper: tables by name, profiles by name."""

    name: FileName
    title: str
    source: str
    tables: dict[FileName, Table]
    profiles: dict[FileName, Profile]


_PLUGINS = Group(GROUP, "paper", lambda: _own().items())


# What reading a paper's definition may raise.
UNREADABLE = (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError)


def names() -> list[str]:
    """Papers that can be reproduced: ours, and those of packages."""
    return _PLUGINS.names()


def load(name: str) -> Paper:
    """Read a paper's definition; ConfigError with the nearest names if there is none."""
    owner = _PLUGINS.owner(name)
    if owner.distribution == OURS:
        return _read(_folder() / owner.target)
    place = _PLUGINS.load_as(name, Path, "a Path to a table's YAML")
    try:
        definition = _read(place)
    except UNREADABLE as error:
        raise _PLUGINS.broken(name, f"{place} cannot be read ({error})") from error
    if definition.name != name:
        raise _PLUGINS.broken(name, f"{place} calls itself '{definition.name}'; the names differ")
    return definition


def _read(place: Traversable) -> Paper:
    return Paper.model_validate(yaml.load(place.read_text(encoding="utf-8"), Loader=UniqueLoader))


def _own() -> dict[str, str]:
    """Name -> file, of this package's papers."""
    return {item.name.removesuffix(".yaml"): item.name for item in _folder().iterdir()}


def pick(paper: Paper, kind: str, name: str, known: dict[str, Any]) -> Any:
    """An entry of a paper by name; ConfigError with the nearest names."""
    if name not in known:
        msg = (
            f"paper '{paper.name}' has no {kind} '{name}'.{nearest(name, list(known))} Give "
            f"--{kind} one of: {', '.join(known)}."
        )
        raise ConfigError(msg)
    return known[name]


def recipe_name(row: Row, pattern: str | None) -> str:
    """'slim-lora-2of4', 'wanda-50pct': a file name."""
    if pattern is None:
        return row.name
    return f"{row.name}-{pattern.replace(':', 'of').replace('%', 'pct')}"


def recipe(
    profile: Profile, data: Data, model: str, table: Table, row: Row, pattern: str | None
) -> Recipe:
    """The run behind one row of a table."""
    values = {**profile.parameters, "pattern": pattern}
    steps = [_all_filled(step, values) for step in row.steps]
    training = _all_filled(row.training, values) if row.training is not None else None
    tune = None
    if row.tune is not None:
        text = data.tune.model_dump() if data.tune else None
        tune = {**_all_filled(row.tune, values), "data": text}
    lower, bench = (profile.lower, profile.bench) if table.timed else (None, None)
    return parse(
        {
            "name": recipe_name(row, pattern),
            "model": {"id": model, "dtype": profile.dtype, "training": training},
            "compress": {
                "steps": steps,
                "order": row.order,
                "skip": row.skip,
                "inputs": row.inputs,
                "tune": tune,
                "cache": row.cache,
            },
            "calibration": data.calibration.model_dump(),
            "evaluate": data.evaluate.model_dump(),
            "lower": lower.model_dump() if lower else None,
            "bench": bench.model_dump() if bench else None,
        },
        f"row '{row.name}'",
    )


# Our measurement's name -> how the published files call it, beside an equal name in lower case.
PUBLISHED_AS = {
    "average": ("average",),
    "perplexity-wikitext2": ("wikitext2", "wikitext-2"),
    "perplexity-c4": ("c4",),
    "perplexity-ptb": ("ptb",),
    "arc_easy": ("arc-e", "arc_e", "arc-easy"),
    "arc_challenge": ("arc-c", "arc_c", "arc-challenge"),
}


def published(
    table: Table, row: Row, pattern: str | None, model: str | None, name: str = "average"
) -> float | None:
    """The paper's own number for a cell, if it has one for this very model.

    name: of our measurement
    """
    value = printed(table, row, pattern, model, name) if model else None
    return None if value is None else float(value)


def printed(
    table: Table, row: Row, pattern: str | None, model: str | None, name: str = "average"
) -> str | None:
    """The paper's number as it is printed, so that one can tell how far it was rounded.

    model: the paper's name for it; None: of any model   name: of our measurement
    """
    line = published_line(table, row, pattern, model, name)
    return line["value"] if line else None


def published_line(
    table: Table, row: Row, pattern: str | None, model: str | None, name: str
) -> dict[str, str] | None:
    """The line of the published file for a cell, its source included; None if it has no number."""
    key = row.published
    if key is None or table.published is None:
        return None
    wanted = {
        "model": model,
        "table": table.published_table,
        "method": key.method,
        "quantization": key.quantization,
        "bits": key.bits,
        "adapter": key.adapter,
        "finetuned": key.finetuned,
        "sparsity_pattern": table.patterns[pattern] if pattern else "dense",
    }
    wanted = {column: value for column, value in wanted.items() if value is not None}
    for line in _lines(published_file(table.published)):
        if all(line[column] == value for column, value in wanted.items()) and _is_of(
            line, name, table
        ):
            try:
                float(line["value"])
            except ValueError:
                continue  # 'OOM': the paper has no number either
            return line
    return None


@cache
def _lines(path: Path) -> tuple[dict[str, str], ...]:
    """A published file, read once: a table looks every cell up in it."""
    with path.open(newline="", encoding="utf-8") as stream:
        return tuple(csv.DictReader(stream))


def _is_of(line: dict[str, str], name: str, table: Table) -> bool:
    """Whether a line of a published file is about what a measurement of this name measures."""
    what = line["task_or_metric"].lower()
    if name in table.published_as:
        return what == table.published_as[name].lower()
    if name == "average":
        return what.startswith("average")
    return what == name or what in PUBLISHED_AS.get(name, ())


def published_file(name: str) -> Path:
    """A file of the papers' own numbers, which are installed as data beside the code."""
    # Not importlib.resources: it refuses a folder without Python that is installed in editable
    # mode.
    for folder in import_module("trinity.published").__path__:
        path = Path(folder, name)
        if path.is_file():
            return path
    msg = f"published numbers '{name}': the file is not installed. Reinstall compression-trinity."
    raise ConfigError(msg)


def _folder() -> Traversable:
    return files("trinity.harness") / "papers"


def _all_filled(options: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return {key: _filled(value, values) for key, value in options.items()}


def _filled(value: Any, values: dict[str, Any]) -> Any:
    """Replace '$name'; a value that is only a name keeps the parameter's type."""
    if not isinstance(value, str) or "$" not in value:
        return value
    if value[1:] in values:
        return values[value[1:]]
    try:
        return Template(value).substitute(values)
    except KeyError as error:
        msg = f"parameter {error} is not given by the profile."
        raise ConfigError(msg) from error
