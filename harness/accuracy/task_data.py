"""Where the data of zero-shot tasks lie.  Never imports lm_eval: that takes seconds.

A task is lm-eval's own definition; only the place of its data may change.  Two exceptions, both
stated in the record: `mmlu` is one pooled task (below), and a local `hellaswag` file is already
cleaned.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from trinity.harness.hub import data_sets
from trinity.harness.texts import jsonl
from trinity.harness.texts.corpora import DATA_DIR, local_file
from trinity.methods.errors import ConfigError


@dataclass(frozen=True)
class TaskData:
    """A task whose data may be local.

    definition: lm-eval's YAML, below its `tasks/` folder   hub: the data set that it names
    split: the split that is scored, 'validation' or 'test'   examples: in the published split
    stem: of the local file, if it is not the split's name
    always, locally: keys of the YAML to change for any data, and for local data
    """

    definition: str
    hub: str
    split: str
    folder: str
    examples: int
    stem: str = ""
    always: dict[str, Any] = field(default_factory=dict)
    locally: dict[str, Any] = field(default_factory=dict)


# lm-eval's `mmlu` is a group of 57 subjects whose score is the mean over all questions.  One pooled
# task asks the same questions with the same prompts (each subject's description names the subject)
# and has that same mean, so that MMLU counts once in an average, as in the papers.
_POOLED_MMLU = {
    "task": "mmlu",
    "dataset_name": "all",
    "description": (
        "The following are multiple choice questions (with answers) about "
        "{{subject|replace('_', ' ')}}.\n\n"
    ),
    "fewshot_split": None,
    "fewshot_config": None,
}

TASKS = {
    "arc_challenge": TaskData(
        "arc/arc_challenge.yaml", "allenai/ai2_arc", "test", "arc_challenge", 1172
    ),
    "arc_easy": TaskData("arc/arc_easy.yaml", "allenai/ai2_arc", "test", "arc_easy", 2376),
    "boolq": TaskData(
        "super_glue/boolq/default.yaml", "aps/super_glue", "validation", "boolq", 3270
    ),
    "hellaswag": TaskData(
        "hellaswag/hellaswag.yaml",
        "Rowan/hellaswag",
        "validation",
        "hellaswag",
        10042,
        stem="validation_1000",
        locally={"process_docs": None},
    ),
    "lambada_openai": TaskData(
        "lambada/lambada_openai.yaml", "EleutherAI/lambada_openai", "test", "lambada_openai", 5153
    ),
    "mmlu": TaskData(
        "mmlu/default/_default_template_yaml",
        "cais/mmlu",
        "test",
        "mmlu",
        14042,
        always=_POOLED_MMLU,
    ),
    "openbookqa": TaskData(
        "openbookqa/openbookqa.yaml", "allenai/openbookqa", "test", "openbookqa", 500
    ),
    "piqa": TaskData("piqa/piqa.yaml", "baber/piqa", "validation", "piqa", 1838),
    "race": TaskData("race/race.yaml", "EleutherAI/race", "test", "race", 1045),
    "rte": TaskData("glue/rte/default.yaml", "nyu-mll/glue", "validation", "rte", 277),
    "winogrande": TaskData(
        "winogrande/default.yaml", "allenai/winogrande", "validation", "winogrande", 1267
    ),
}

# With `limit`, the first questions of these would all be about one subject: evenly spaced ones are
# taken instead.
SORTED_BY_SUBJECT = frozenset({"mmlu"})


def published_examples(task: str) -> int | None:
    """Examples of the published split, of which a local file may hold fewer; None if unknown."""
    return TASKS[task].examples if task in TASKS else None


def examples(task: str) -> int | None:
    """Examples at hand: of the local file, or of the published split; None if unknown."""
    path = local_path(task)
    if path is None:
        return published_examples(task)
    # Its change time says that a file was replaced, whatever the time that it claims.
    found = path.stat()
    return _rows_of(path, found.st_ino, found.st_size, found.st_ctime_ns)


@cache
def _rows_of(path: Path, *_version: int) -> int:
    """Counted once for each version of a file: that of mmlu takes a fifth of a second."""
    with jsonl.opened(path) as stream:
        return sum(1 for _ in jsonl.rows(stream, path))


def local_path(task: str) -> Path | None:
    """The task's file under TRINITY_DATA_DIR, or None if there is no such file."""
    data = TASKS.get(task)
    return local_file(data.folder, data.stem or data.split) if data else None


def at_hand(task: str) -> str | None:
    """None if the task needs no network, else one sentence that says what is missing."""
    if local_path(task) is not None:
        return None
    data = TASKS.get(task)
    if data is None:
        return (
            f"task {task} is known to lm-eval only, which reads its data from the Hugging Face hub"
        )
    return f"task {task}: no {DATA_DIR}/{data.folder}/{data.stem or data.split}.jsonl.gz"


def obtainable(task: str) -> bool:
    """Whether a task's data will be found: here, or on a hub that answers."""
    if local_path(task) is not None:
        return True
    # What only lm-eval knows is asked for when it is loaded: finding its data set takes seconds.
    return task not in TASKS or data_sets.obtainable(TASKS[task].hub)


@dataclass(frozen=True, eq=False)
class LocalRows:
    """The rows of a task's file, and the hash of the very bytes they were read from."""

    rows: list[jsonl.Row]
    source: dict[str, str]


def read(task: str) -> LocalRows | None:
    """The task's local file; None if there is none.  ConfigError if it is damaged."""
    path = local_path(task)
    if path is None:
        return None
    with jsonl.opened(path) as stream:
        content = stream.read()
    rows: list[jsonl.Row] = []
    for number, row in jsonl.rows(BytesIO(content), path):
        if rows and row.keys() != rows[0].keys():
            other = ", ".join(sorted(row.keys() ^ rows[0].keys()))
            msg = f"{path}, line {number}: has other fields than the first row ({other})."
            raise ConfigError(msg)
        rows.append(row)
    return LocalRows(rows, _described(path, content))


def overrides(task: str, locally: bool) -> dict[str, Any]:
    """What to change in lm-eval's YAML.  locally: whether the rows are a local file's"""
    data = TASKS[task]
    if not locally:
        return {"task": task} | data.always
    unused = {"training_split": None, "validation_split": None, "test_split": None}
    place = {"dataset_name": None, "dataset_kwargs": None, f"{data.split}_split": data.split}
    return {"task": task} | data.always | unused | place | data.locally


def source(task: str) -> dict[str, str] | None:
    """Where a task's data are, with their file's hash or their commit: what its numbers are kept
    under.  None for a task that only lm-eval knows.
    """
    path = local_path(task)
    if path is not None:
        with jsonl.opened(path) as stream:
            return _described(path, stream.read())
    data = TASKS.get(task)
    if data is None:
        return None
    sha = data_sets.commit(data.hub)
    return {"source": data_sets.source(data.hub, sha), "commit": sha}


def _described(path: Path, content: bytes) -> dict[str, str]:
    return {
        "source": f"{DATA_DIR}/{path.parent.name}/{path.name}",
        "sha256": hashlib.sha256(content).hexdigest(),
    }
