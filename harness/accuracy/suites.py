"""Accuracy suites by name: YAML data, read into frozen models.

Built-in suites are `harness/suites/*.yaml`.  Third parties add some through the `trinity.suites`
entry-point group, each entry naming a mapping with the same keys, and kinds of suites through the
group `trinity.suite_kinds`, each entry naming a class derived from `suite.MeasuredSuite` or
`suite.ComparedSuite`.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from trinity.harness.accuracy.suite import ComparedSuite, MeasuredSuite, Suite
from trinity.harness.accuracy.suite_data import SuiteData
from trinity.harness.hub import data_sets
from trinity.harness.recipes import resolution
from trinity.harness.recipes.recipe import SuiteSpec
from trinity.harness.recipes.yaml_loaders import UniqueLoader
from trinity.harness.records.facts import Text
from trinity.harness.records.measurement import Measurement
from trinity.harness.texts.corpora import Tokenizer
from trinity.methods.errors import ConfigError, nearest
from trinity.methods.plugins import OURS, Group, Owner

if TYPE_CHECKING:
    from trinity.harness.engines.engine import Engine

GROUP = "trinity.suites"
KINDS_GROUP = "trinity.suite_kinds"

# Kind -> its class, loaded when a suite of that kind is.
BUILT_IN_KINDS = {
    "perplexity": "trinity.harness.accuracy.kinds.perplexity:PerplexitySuite",
    "tasks": "trinity.harness.accuracy.kinds.tasks:TasksSuite",
    "last-word": "trinity.harness.accuracy.kinds.last_word:LastWordSuite",
    "fidelity": "trinity.harness.accuracy.kinds.fidelity:FidelitySuite",
    "flips": "trinity.harness.accuracy.kinds.flips:FlipsSuite",
}

_SUITES = Group(GROUP, "suite", lambda: _own().items())
_KINDS = Group(KINDS_GROUP, "kind of suite", BUILT_IN_KINDS.items)


def names() -> list[str]:
    """Every suite, built-in and third-party, sorted."""
    return _SUITES.names()


def load(name: str) -> Suite:
    """Read a suite by name; ConfigError with the nearest names if there is none."""
    owner = _SUITES.owner(name)
    if owner.distribution == OURS:
        text = _folder().joinpath(owner.target).read_text("utf-8")
        return parse(name, yaml.load(text, Loader=UniqueLoader))
    content = _SUITES.load_as(name, dict, "a mapping")
    try:
        return parse(name, content)
    except ConfigError as error:
        raise _SUITES.broken(name, f"'{owner.target}' is no suite ({error})") from error


def kinds() -> list[str]:
    """Every kind of suite, built-in and third-party, sorted."""
    return _KINDS.names()


def kind(name: str) -> type[Suite]:
    """The class of a kind; ConfigError with the nearest names if there is none."""
    loaded = _KINDS.load_as(name, type, "a class")
    if not issubclass(loaded, (MeasuredSuite, ComparedSuite)):
        target = _KINDS.owner(name).target
        raise _KINDS.broken(name, f"'{target}' is not derived from a suite of Trinity's")
    if lacking := sorted(loaded.__abstractmethods__):
        target = _KINDS.owner(name).target
        raise _KINDS.broken(name, f"'{target}' has no {', no '.join(lacking)}")
    return loaded


def owners(spec: SuiteSpec) -> list[Owner]:
    """Who registers a suite, its kind, and what it compares."""
    suite = resolve(spec)
    found = [_SUITES.owner(suite.name), _KINDS.owner(suite.kind)]
    return found + (owners(suite.compared) if isinstance(suite, ComparedSuite) else [])


def kind_owner(suite: Suite) -> Owner:
    """Who registers a suite's kind."""
    return _KINDS.owner(suite.kind)


def parse(name: str, content: Any) -> Suite:
    """A mapping, as YAML gives it, to a suite; ConfigError names the wrong key."""
    known_kinds = kinds()
    named = content.get("kind") if isinstance(content, dict) else None
    if named not in known_kinds:
        msg = (
            f"suite '{name}': expected a mapping whose `kind` is one of {', '.join(known_kinds)}, "
            f"found {named!r}."
        )
        raise ConfigError(msg)
    found = kind(named)
    known = sorted(set(found.model_fields) - {"name"})
    unknown = sorted(set(map(str, content)) - set(known))
    if unknown:
        hints = "".join(nearest(key, known) for key in unknown)
        msg = (
            f"suite '{name}' has no key {', '.join(unknown)}.{hints} Keys of kind {named}: "
            f"{', '.join(known)}."
        )
        raise ConfigError(msg)
    try:
        return found.model_validate(content | {"name": name})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}, found {item['input']!r}"
            for item in error.errors()
        )
        msg = f"suite '{name}': {problems}."
        raise ConfigError(msg) from error


def resolve(spec: SuiteSpec) -> Suite:
    """The named suite with the sizes that a recipe gives it; ConfigError if it has no such size."""
    suite = load(spec.suite)
    changes = spec.model_dump(exclude_none=True, exclude={"suite", "resolve"})
    known = sorted(set(type(suite).model_fields) - {"kind", "name"})
    unknown = sorted(set(changes) - set(known))
    if unknown:
        msg = (
            f"suite '{spec.suite}' is of kind {suite.kind} and has no {', '.join(unknown)}. Keys: "
            f"{', '.join(known)}."
        )
        raise ConfigError(msg)
    sized = parse(spec.suite, suite.model_dump(exclude={"name"}) | changes)
    chosen = sized.sizes_resolving(resolution.wanted(spec.resolve))
    for size in ("limit", "windows"):
        if chosen and getattr(spec, size) is not None:
            msg = (
                f"suite '{spec.suite}' has `{size}: {getattr(spec, size)}`, and `resolve: "
                f"{_said(spec)}` chooses how much of it is read. Leave out one of the two."
            )
            raise ConfigError(msg)
    return parse(spec.suite, sized.model_dump(exclude={"name"}) | chosen) if chosen else sized


def _said(spec: SuiteSpec) -> str:
    return ", ".join(one.text for one in resolution.wanted(spec.resolve).values())


def check_resolution(specs: Sequence[SuiteSpec]) -> None:
    """ConfigError where a resolution is asked for and no suite measures in its unit."""
    used, asked = set[str](), dict[str, str]()
    for spec in specs:
        suite = load(spec.suite)
        for unit, one in resolution.wanted(spec.resolve).items():
            asked.setdefault(unit, one.text)
            if suite.sizes_resolving({unit: one}):
                used.add(unit)
    for unit, text in asked.items():
        if unit not in used:
            msg = (
                f"`evaluate.resolve: {text}` chooses how much of a suite is read, and none of "
                f"{', '.join(spec.suite for spec in specs)} measures in {_MEASURED_IN[unit]}. Add "
                f"one that does, or leave it out."
            )
            raise ConfigError(msg)


_MEASURED_IN = {
    resolution.POINTS: "points: suites of tasks, flips and fidelity do",
    resolution.RATIO: "ratios: suites of perplexity do",
    resolution.NATS: "nats: suites of fidelity do",
}


def resolved(spec: SuiteSpec, found: Sequence[Measurement]) -> list[Measurement]:
    """A suite's measurements, each with what it must say of a resolution that was asked for."""
    said = resolve(spec).resolved(resolution.wanted(spec.resolve), found)
    return [sized.added_to(m) for sized, m in zip(said, found, strict=True)]


def sized(names: Sequence[str], sizes: Mapping[str, int | None]) -> list[dict[str, Any]]:
    """Suites by name, each with those of the sizes that it has, as a recipe writes them.

    ConfigError for a size that none of them has.
    """
    given = {key: value for key, value in sizes.items() if value is not None}
    fields = {name: set(type(load(name)).model_fields) for name in names}
    for key in given:
        if names and not any(key in known for known in fields.values()):
            kinds = "; ".join(f"{name} has {_sizes_of(known)}" for name, known in fields.items())
            msg = f"--{key}: none of the suites has such a size: {kinds}."
            raise ConfigError(msg)
    return [
        {"suite": name, **{key: value for key, value in given.items() if key in fields[name]}}
        for name in names
    ]


def _sizes_of(fields: set[str]) -> str:
    sizes = sorted(fields & (set(SuiteSpec.model_fields) - {"suite", "tasks"}))
    return " and ".join(f"--{size}" for size in sizes) or "no size"


def bounded(spec: SuiteSpec, context: int) -> SuiteSpec:
    """Windows no longer than the model's context; ConfigError if longer ones are asked for."""
    window = resolve(spec).window
    if window is None or window <= context:
        return spec
    if spec.seqlen is not None:
        msg = (
            f"suite '{spec.suite}': seqlen is {spec.seqlen}, and this model reads {context} tokens "
            f"at most. Set seqlen within that, or leave it out; numbers of different seqlen cannot "
            f"be compared."
        )
        raise ConfigError(msg)
    return spec.model_copy(update={"seqlen": context})


def bounded_from(spec: SuiteSpec, bounded: SuiteSpec) -> Text:
    """What a measurement must say of a suite whose windows had to be shorter; nothing of others."""
    return Text(seqlen_bounded_from=None if bounded == spec else resolve(spec).window)


def data(spec: SuiteSpec) -> SuiteData:
    """What a suite reads; of one that compares, what the compared one reads."""
    suite = resolve(spec)
    if isinstance(suite, ComparedSuite):
        return data(suite.compared)
    assert isinstance(suite, MeasuredSuite)  # every kind is the one or the other
    return suite.data()


def missing(spec: SuiteSpec) -> str | None:
    """Why the suite's data cannot be had, as an error's text.

    None if they are on this machine, were fetched before, or may be on the hub.
    """
    read = data(spec)
    absent = read.at_hand()
    if absent is None or not data_sets.hub_is_off() or read.obtainable():
        return None
    return (
        f"suite '{spec.suite}': {absent}; and HF_HUB_OFFLINE forbids asking the Hugging Face hub. "
        f"Put the files there, unset HF_HUB_OFFLINE, or use a suite on pydoc, which needs no data."
    )


def run(
    spec: SuiteSpec,
    engine: "Engine",
    tokenizer: Tokenizer,
    dense: "Callable[[], Engine] | None" = None,
) -> list[Measurement]:
    """Measure one suite; measurements carry the suite's name, those of tasks the task's.

    dense: the model before compression, for suites that compare with it
    """
    suite = resolve(spec)
    if not isinstance(suite, MeasuredSuite):
        msg = f"suite '{suite.name}' compares the answers of two runs and is not run on one engine."
        raise ConfigError(msg)
    return suite.measure(engine, tokenizer, dense)


def _folder() -> Traversable:
    return files("trinity.harness").joinpath("suites")


def _own() -> dict[str, str]:
    """Name -> file, of this package's suites."""
    entries = (entry.name for entry in _folder().iterdir())
    return {name.removesuffix(".yaml"): name for name in entries if name.endswith(".yaml")}
