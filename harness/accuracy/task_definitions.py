"""lm-eval's tasks, with their data from a local file or from the hub at one commit."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import jinja2
import lm_eval
import yaml
from lm_eval.api import task as lm_eval_task
from lm_eval.tasks import TaskManager

from trinity.harness.accuracy import task_data
from trinity.harness.hub import data_sets
from trinity.harness.hub.failures import Asked, patiently
from trinity.harness.texts import jsonl
from trinity.harness.texts.corpora import DATA_DIR, content_hash
from trinity.methods.errors import ConfigError, MachineError, UnsupportedError, nearest

log = logging.getLogger(__name__)

METRIC = "acc"  # `acc,none`, for every task of the papers; never `acc_norm`

# What templates and functions of a task raise on rows that lack a field or have another type there.
_ROW_ERRORS = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    SyntaxError,
    jinja2.UndefinedError,
)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A task with zero shots, and the record's words for where its data came from."""

    task: lm_eval_task.Task
    source: dict[str, str]


def source(name: str) -> dict[str, str]:
    """Where the data of a task that only lm-eval knows are: a commit of the hub or, of what it
    reads from elsewhere, a hash of the documents.
    """
    dataset = _hub_of(name)
    if dataset is None:
        return load(name).source
    sha = data_sets.commit(dataset)
    return {"source": data_sets.source(dataset, sha), "commit": sha}


def load(name: str) -> Loaded:
    """lm-eval's task with zero shots, its data local if they are under TRINITY_DATA_DIR."""
    try:
        loaded = _load_known(name) if name in task_data.TASKS else _load_registered(name)
    except MachineError as error:
        msg = (
            f"{task_data.at_hand(name)}, and the hub did not give it: {error} Or put the file "
            f"under {DATA_DIR}."
        )
        raise MachineError(msg) from error
    _check_kind(name, loaded.task)
    loaded.task.set_config(key="num_fewshot", value=0)
    return loaded


def _check_kind(name: str, task: lm_eval_task.Task) -> None:
    """UnsupportedError, before an hour of work, for a task that suites here do not measure."""
    metrics = list(task.aggregation())
    if METRIC not in metrics:
        msg = f"task {name} has no metric '{METRIC}' (it has {', '.join(metrics)})."
        raise UnsupportedError(msg)
    shots = task.get_config("num_fewshot")
    if shots:
        msg = (
            f"task {name} asks with {shots} examples before each question, and suites here ask "
            f"with none: the number would be no one else's. Use a task without them."
        )
        raise UnsupportedError(msg)


def check(loaded: Loaded, name: str, examples: Sequence[int]) -> None:
    """ConfigError for an example that lm-eval would score without a word although it has no right
    answer, or only one to choose from, or lacks what the task asks for.
    """
    task, docs = loaded.task, loaded.task.eval_docs
    for number in examples:
        with _wrong_rows(name, loaded.source["source"], f"example {number} "):
            problem = _problem(task, docs[number])
        if problem:
            msg = f"task {name}: example {number} of {loaded.source['source']} {problem}."
            raise ConfigError(msg)


def _problem(task: lm_eval_task.Task, doc: jsonl.Row) -> str | None:
    """Why a question cannot be scored, or None."""
    # Each of these makes its template anew, which costs a millisecond: no more of them than needed.
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    choices = task.doc_to_choice(doc)
    if len(choices) < 2:
        return f"has {len(choices)} answers to choose from"
    for right in gold if isinstance(gold, list) else [gold]:
        known = right in choices if isinstance(right, str) else 0 <= right < len(choices)
        if not known:
            return f"has the label {right!r}, which is none of its {len(choices)} answers"
    return None


@contextmanager
def _wrong_rows(name: str, place: str, which: str = "") -> Iterator[None]:
    """ConfigError in place of what lm-eval's templates and functions raise on other rows."""
    try:
        yield
    except _ROW_ERRORS as error:
        msg = (
            f"task {name}: {which}of {place} is not what the task's questions are made of "
            f"({type(error).__name__}: {error}). Compare its fields with the hub's data set."
        )
        raise ConfigError(msg) from error


def _load_known(name: str) -> Loaded:
    data, local = task_data.TASKS[name], task_data.read(name)
    packaged = Path(lm_eval.__file__).parent / "tasks" / data.definition
    definition = {"include": str(packaged)} | task_data.overrides(name, local is not None)
    with TemporaryDirectory(prefix="trinity-task-") as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(yaml.safe_dump(definition), encoding="utf-8")
        # Without lm-eval's defaults: indexing its thousands of YAML files takes seconds.
        manager = TaskManager(include_path=folder, include_defaults=False)
        if local is None:
            return _from_hub(manager, name, data.hub)
        tables = {data.split: _table(name, local)}
        with _wrong_rows(name, local.source["source"], "a row "):
            task = _changed(manager, name, {"custom_dataset": lambda **_: tables})
    return Loaded(task, local.source)


def _table(name: str, local: task_data.LocalRows) -> datasets.Dataset:
    """Rows as lm-eval reads them; ConfigError if a column has values of several kinds."""
    try:
        return datasets.Dataset.from_list(local.rows)
    except (ValueError, TypeError, OverflowError) as error:  # pyarrow's are of these
        msg = (
            f"task {name}: {local.source['source']} has a column with values of several kinds "
            f"({error}). Get the file again."
        )
        raise ConfigError(msg) from error


def _from_hub(manager: TaskManager, name: str, dataset: str) -> Loaded:
    """A task whose data set is read at the commit of this process."""
    sha = data_sets.commit(dataset)
    given = (manager.task_index[name].cfg or {}).get("dataset_kwargs") or {}
    changes = {"dataset_kwargs": {**given, "revision": sha}}
    with data_sets.refusals(dataset):
        task = patiently(
            lambda: _changed(manager, name, changes), Asked(dataset, sha, "dataset"), log.warning
        )
    for rows in task.dataset.values():
        data_sets.check_commit(dataset, sha, rows)
    return Loaded(task, {"source": data_sets.source(dataset, sha), "commit": sha})


def _changed(manager: TaskManager, name: str, changes: dict[str, Any]) -> lm_eval_task.Task:
    """A task with other keys than its YAML has; lm-eval takes them of members of a group."""
    group = {"group": "trinity", "task": [{"task": name, **changes}]}
    return manager.load(group)["tasks"][name]


def _load_registered(name: str) -> Loaded:
    manager, dataset = _manager(), _hub_of(name)
    if dataset is not None:
        return _from_hub(manager, name, dataset)
    with data_sets.refusals(f"of task {name}"):
        task = manager.load([name])["tasks"][name]
    documents = (json.dumps(doc, sort_keys=True, default=str) for doc in task.eval_docs)
    return Loaded(task, {"source": f"as lm-eval reads {name}", "sha256": content_hash(documents)})


@cache
def _manager() -> TaskManager:
    """All tasks of lm-eval; indexing their thousands of YAML files takes seconds."""
    return TaskManager()


def _hub_of(name: str) -> str | None:
    """The hub's data set that a registered task reads; None if it reads something else."""
    manager = _manager()
    if name not in manager.all_subtasks:
        known = sorted({*task_data.TASKS, *manager.all_subtasks})
        msg = (
            f"task '{name}' is no single task of lm-eval "
            f"{lm_eval.__version__}.{nearest(name, known)} With data at hand offline: "
            f"{', '.join(sorted(task_data.TASKS))}."
        )
        raise ConfigError(msg)
    definition = manager.task_index[name].cfg or {}
    dataset = definition.get("dataset_path")
    own = "custom_dataset" in definition or "class" in definition
    pinned = "revision" in (definition.get("dataset_kwargs") or {})
    # `owner/name`: other words are readers of files ("json", "csv"), or folders.
    if own or pinned or not isinstance(dataset, str) or dataset.count("/") != 1:
        return None
    return dataset
