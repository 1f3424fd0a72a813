"""Fetch beforehand all that a recipe, a paper's profile or a model's name needs, so that it runs
without a network afterwards.
"""

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trinity.harness.accuracy import suites
from trinity.harness.recipes import paper, recipe
from trinity.harness.recipes.recipe import ModelSpec, Recipe
from trinity.harness.repro import repro
from trinity.harness.store.stages import StageStore
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError, MachineError, TrinityError

ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class Needs:
    """Models, texts (data set, split) and tasks, each once.

    run: the command that needs them, '' if any may
    """

    run: str
    models: tuple[ModelSpec, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Got:
    """One thing that was asked for.

    place: where it came from   size_bytes: what it holds   failure: why it is not here, or None
    """

    what: str
    place: str
    size_bytes: int
    failure: TrinityError | None = None


def needs_of(what: str, asked: repro.Selection, revision: str | None) -> Needs:
    """What a recipe's file, a paper or a model's name stands for."""
    if what.endswith(ENDINGS):
        _refuse("recipe", what, {**_given(asked), "revision": revision})
        return of_recipes([recipe.read(Path(what), [])], shlex.join(["trinity", "run", what]))
    if what in paper.names():
        _refuse("paper", what, {"revision": revision})
        chosen = repro.choose(what, asked)
        source = repro.first_at_hand(chosen.profile)
        planned = [
            run
            for table in chosen.rows
            for model in chosen.models
            for *_, run in chosen.recipes(table, model, source)
        ]
        return of_recipes(planned, _repro(what, asked, chosen.profile_name))
    _refuse("model", what, _given(asked))
    return Needs("", models=(ModelSpec(id=what, revision=revision),))


def _given(asked: repro.Selection) -> dict[str, str | None]:
    return {
        "table": asked.table,
        "profile": asked.profile,
        "rows": asked.rows,
        "model": asked.models,
    }


def _refuse(kind: str, what: str, options: dict[str, str | None]) -> None:
    """ConfigError for an option that says nothing of such a thing."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        msg = (
            f"fetch {what}: is read as a {kind}, and {', '.join(given)} says nothing of one. "
            f"Papers are: {', '.join(paper.names())}."
        )
        raise ConfigError(msg)


def _repro(name: str, asked: repro.Selection, profile: str) -> str:
    """The command that takes what was fetched: without a network another profile may be chosen."""
    given = {**_given(asked), "profile": profile}
    options = [word for key, value in given.items() if value for word in (f"--{key}", value)]
    return shlex.join(["trinity", "repro", name, *options])


def of_recipes(recipes: Iterable[Recipe], run: str) -> Needs:
    """Everything that these runs read.  run: the command for them"""
    models: dict[ModelSpec, None] = {}
    texts: dict[tuple[str, str], None] = {}
    tasks: dict[str, None] = {}
    for each in recipes:
        models[each.model] = None
        if each.model.dense:
            models[ModelSpec(id=each.model.dense)] = None
        tune = each.compress.tune
        for text in (each.calibration, tune.data if tune else None):
            if text is not None:
                texts[text.dataset, text.split] = None
        for spec in each.evaluate.suites if each.evaluate else ():
            read = suites.data(spec)
            tasks.update(dict.fromkeys(read.tasks))
            texts.update(dict.fromkeys(read.texts))
    return Needs(run, tuple(models), tuple(texts), tuple(tasks))


def fetch(needs: Needs, store: StageStore, reporter: Reporter) -> list[Got]:
    """Get all of it; what fails is said and the rest goes on."""
    got = [
        _tried(f"model {spec.id}", partial(_model, spec, store, reporter)) for spec in needs.models
    ]
    for dataset, split in needs.texts:
        reporter.say(f"text {dataset} ({split})")
        get = partial(_text, dataset, split, reporter)
        got.append(_tried(f"text {dataset} ({split})", get))
    for name in needs.tasks:
        reporter.say(f"task {name}")
        got.append(_tried(f"task {name}", partial(_task, name)))
    return got


def incomplete(got: list[Got]) -> TrinityError | None:
    """The error that says what is missing; None if all is here."""
    lost = [item for item in got if item.failure]
    if not lost:
        return None
    if len(got) == 1:
        return got[0].failure
    # Imported here: it loads torch, as in `_model`.
    from trinity.harness.hub.repositories import is_silent

    # A hub that does not answer is one reason, whatever was asked of it.
    silent = [item for item in lost if item.failure and is_silent(item.failure)]
    own = dict.fromkeys(str(item.failure) for item in lost if item not in silent[1:])
    machine = all(isinstance(item.failure, MachineError) for item in lost)
    kind = MachineError if machine else TrinityError
    return kind(f"{len(lost)} of {len(got)} are missing. {' '.join(own)}")


def _tried(what: str, get: Callable[[], tuple[str, int]]) -> Got:
    try:
        place, size = get()
    except TrinityError as error:
        return Got(what, "", 0, error)
    return Got(what, place, size)


def _model(spec: ModelSpec, store: StageStore, reporter: Reporter) -> tuple[str, int]:
    # Imported here: it loads torch, and a wrong name is found without.
    from trinity.harness.sources import sources

    found = sources.resolve(spec.id, spec.revision, store, spec.training, reporter)
    size = sum(path.stat().st_size for path in found.path.iterdir() if path.is_file())
    place = f"Hugging Face hub, commit {found.commit[:12]}" if found.commit else "this machine"
    return place, size


def _text(dataset: str, split: str, reporter: Reporter) -> tuple[str, int]:
    from trinity.harness.texts import corpora

    corpus = corpora.load(dataset, split, reporter)
    return corpus.source, sum(len(document.encode()) for document in corpus.documents)


def _task(name: str) -> tuple[str, int]:
    # Imported here: it imports lm_eval, which takes seconds.
    from trinity.harness.accuracy import task_definitions

    loaded = task_definitions.load(name)
    size = sum(int(split.data.nbytes) for split in loaded.task.dataset.values())
    return loaded.source["source"], size
