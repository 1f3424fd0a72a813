"""lm-eval's tasks read what their file says now, or the hub's data set at one commit."""

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from tests.harness.tiny import BigramEngine, ByteTokenizer, saying
from trinity.harness.accuracy import suites, task_data, task_definitions, tasks
from trinity.harness.hub import data_sets
from trinity.harness.recipes.recipe import SuiteSpec
from trinity.harness.texts import corpora
from trinity.methods.errors import ConfigError, MachineError, UnsupportedError

PIQA = SuiteSpec(suite="slim-zeroshot", tasks=("piqa",))


def questions(*labels: int) -> list[dict[str, Any]]:
    return [{"goal": "to", "sol1": "chair", "sol2": "spoon", "label": x} for x in labels]


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "piqa" / "validation.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    os.utime(path, (1000, 1000))
    return path


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data [1] of *"
    folder.mkdir()
    monkeypatch.setenv(corpora.DATA_DIR, str(folder))
    return folder


def accuracy() -> list[float]:
    engine = BigramEngine(saying(" chair"))
    return tasks.evaluate(engine, ByteTokenizer(), ["piqa"])[0].samples


def test_a_file_replaced_within_its_time_stamp_is_read_anew(local: Path) -> None:
    write(local, questions(0, 0, 1))
    before = suites.data(PIQA).fingerprint()
    assert accuracy() == [1.0, 1.0, 0.0]
    write(local, questions(1, 1, 0))
    assert accuracy() == [0.0, 0.0, 1.0]
    assert suites.data(PIQA).fingerprint() != before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b""), "holds no rows"),
        (gzip.compress(b"{" * 9999)[:40], "is no whole gzip file"),
        (gzip.compress(b'{"goal": "a"}\n{"goal": \n'), "line 2: is not JSON"),
        (gzip.compress(b'{"goal": "a"}\n{"goal": 3}\n'), "values of several kinds"),
    ],
)
def test_a_damaged_file_is_named(local: Path, content: bytes, said: str) -> None:
    write(local, []).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"piqa/validation\.jsonl\.gz.*{said}"):
        task_definitions.load("piqa")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"goal": "to", "sol1": "a", "sol2": "b", "label": -1}, "example 1 .* the label -1"),
        ({"goal": "to", "sol1": "a", "sol2": "b", "label": 2}, "example 1 .* the label 2"),
        ({"goal": "to", "sol1": "a", "sol2": "b"}, r"line 2: has other fields .*\(label\)"),
    ],
)
def test_an_example_without_a_right_answer_is_refused_not_scored_0(
    local: Path, row: dict[str, Any], said: str
) -> None:
    write(local, [*questions(0), row])
    with pytest.raises(ConfigError, match=said):
        accuracy()


def test_a_file_of_other_rows_is_refused_by_name(local: Path) -> None:
    write(local, [{"goal": "to sit", "label": 0}])
    with pytest.raises(ConfigError, match=r"task piqa: a row of TRINITY_DATA_DIR/piqa/valid"):
        accuracy()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_fewshot": 5}, "asks with 5 examples before each question"),
        ({"metric_list": [{"metric": "acc_norm"}]}, r"has no metric 'acc' \(it has acc_norm\)"),
    ],
)
def test_a_task_of_another_kind_is_refused_before_it_is_run(
    local: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    write(local, questions(0))
    monkeypatch.setitem(task_data.TASKS, "piqa", replace(task_data.TASKS["piqa"], always=changes))
    with pytest.raises(UnsupportedError, match=said):
        task_definitions.load("piqa")


def test_rte_may_be_local_too(local: Path) -> None:
    rows = [{"sentence1": "It rains.", "sentence2": "It is wet.", "label": n} for n in (0, 1)]
    path = write(local, rows)
    path.parent.rename(local / "rte")
    assert len(task_definitions.load("rte").task.eval_docs) == 2


class Hub:
    """`datasets.load_dataset` of a hub whose labels depend on the commit."""

    def __init__(self, labels: dict[str, int]) -> None:
        self.labels = labels
        self.asked: list[dict[str, Any]] = []

    def load_dataset(self, path: str, **arguments: Any) -> datasets.DatasetDict:
        self.asked.append({"path": path, **arguments})
        rows = datasets.Dataset.from_list(questions(self.labels[arguments["revision"]]))
        return datasets.DatasetDict({"validation": rows, "train": rows})


def test_labels_flipped_on_the_hub_change_the_key_the_score_and_the_record(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub({"abc": 0, "def": 1})
    monkeypatch.setattr("datasets.load_dataset", hub.load_dataset)
    found = {}
    for sha in hub.labels:
        monkeypatch.setattr(data_sets, "commit", lambda dataset, sha=sha: sha)
        (m,) = tasks.evaluate(BigramEngine(saying(" chair")), ByteTokenizer(), ["piqa"])
        found[sha] = (suites.data(PIQA).fingerprint()["piqa"], m.samples, m.details["source"])
        assert m.details["commit"] == sha
    words = "huggingface.co/datasets/baber/piqa, commit "
    assert found == {
        "abc": ("abc", [1.0], f"{words}abc"),
        "def": ("def", [0.0], f"{words}def"),
    }
    assert [x["path"] for x in hub.asked] == ["baber/piqa"] * 2


def test_missing_task_data_name_both_ways_to_get_them(local: Path) -> None:
    data_sets.asked_once.cache_clear()
    with pytest.raises(MachineError, match=r"piqa/validation\.jsonl\.gz.*unset it.*put the file"):
        task_definitions.load("piqa")


@pytest.mark.parametrize("name", task_data.TASKS)
def test_every_task_names_the_data_set_that_lm_eval_reads(name: str) -> None:
    packaged = Path(lm_eval.__file__).parent / "tasks" / task_data.TASKS[name].definition
    assert load_yaml(packaged, resolve_func=False)["dataset_path"] == task_data.TASKS[name].hub
