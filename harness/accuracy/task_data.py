"""Where the data of zero-shot tasks lie.  Never imports lm_eval: that takes seconds.

A task is lm-eval's own definition; only the place of its data may change.  Two exceptions, both
stated in the record: `mmlu` is one pooled task (below), and a local `hellaswag` file is already
cleaned.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trinity.harness.data import DATA_DIR, local_file


@dataclass(frozen=True)
class TaskData:
    """A task whose data may be local.

    definition: lm-eval's YAML, below its `tasks/` folder
    split: the split that is scored, 'validation' or 'test'
    stem: of the local file, if it is not the split's name
    always, locally: keys of the YAML to change for any data, and for local data
    """

    definition: str
    split: str
    folder: str
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
    "arc_challenge": TaskData("arc/arc_challenge.yaml", "test", "arc_challenge"),
    "arc_easy": TaskData("arc/arc_easy.yaml", "test", "arc_easy"),
    "boolq": TaskData("super_glue/boolq/default.yaml", "validation", "boolq"),
    "hellaswag": TaskData(
        "hellaswag/hellaswag.yaml",
        "validation",
        "hellaswag",
        stem="validation_1000",
        locally={"process_docs": None},
    ),
    "lambada_openai": TaskData("lambada/lambada_openai.yaml", "test", "lambada_openai"),
    "mmlu": TaskData("mmlu/default/_default_template_yaml", "test", "mmlu", always=_POOLED_MMLU),
    "openbookqa": TaskData("openbookqa/openbookqa.yaml", "test", "openbookqa"),
    "piqa": TaskData("piqa/piqa.yaml", "validation", "piqa"),
    "winogrande": TaskData("winogrande/default.yaml", "validation", "winogrande"),
}

# With `limit`, the first questions of these would all be about one subject: evenly spaced ones are
# taken instead.
SORTED_BY_SUBJECT = frozenset({"mmlu"})


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


def overrides(task: str) -> dict[str, Any]:
    """What to change in lm-eval's YAML: nothing, or the keys that point it to the local file."""
    data = TASKS[task]
    path = local_path(task)
    if path is None:
        return {"task": task} | data.always
    unused = {"training_split": None, "validation_split": None, "test_split": None}
    place = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {data.split: str(path)}},
        f"{data.split}_split": data.split,
    }
    return {"task": task} | data.always | unused | place | data.locally


def source(task: str) -> dict[str, str]:
    """The record's words for where a task's data came from, and the file's hash if it is local."""
    path = local_path(task)
    if path is None:
        return {"source": "Hugging Face hub"}
    return {
        "source": f"{DATA_DIR}/{path.parent.name}/{path.name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
