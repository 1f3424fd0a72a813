"""Data sets of a hub that changes, and of one that is gone: which commit is read and recorded."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.tiny import BigramEngine, ByteTokenizer, saying
from tests.hub import contents, fixtures
from tests.hub.server import FakeHub
from trinity.harness.accuracy import suites, tasks
from trinity.harness.hub import data_sets
from trinity.harness.recipes.recipe import SuiteSpec
from trinity.harness.records.measurement import Measurement
from trinity.harness.texts import corpora

PIQA = SuiteSpec(suite="slim-zeroshot", tasks=("piqa",))


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(corpora.DATA_DIR, raising=False)
    data_sets.asked_once.cache_clear()
    yield
    data_sets.asked_once.cache_clear()


def piqa(label: int) -> dict[str, bytes]:
    rows = [{"goal": "to", "sol1": "chair", "sol2": "spoon", "label": label}] * 3
    return contents._configured(None, {"train": rows, "validation": rows})


def measured() -> tuple[str, Measurement]:
    data_sets.asked_once.cache_clear()  # as another process would ask
    key = suites.data(PIQA).fingerprint()["piqa"]
    (found,) = tasks.evaluate(BigramEngine(saying(" chair")), ByteTokenizer(), ["piqa"])
    return key, found


def test_new_labels_give_a_new_key_and_score_and_without_a_hub_the_last_ones_stay(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("baber/piqa", piqa(0), kind="datasets")
    old, right = measured()
    hub.add("baber/piqa", piqa(1), kind="datasets")
    new, wrong = measured()
    assert old != new
    assert (right.value, wrong.value) == (1.0, 0.0)
    assert right.details["commit"] == old
    assert wrong.details["source"] == f"huggingface.co/datasets/baber/piqa, commit {new}"
    fixtures.use(hub.url, tmp_path / "hf", monkeypatch, offline=True)
    assert measured() == (new, wrong)


@pytest.mark.parametrize("name", ["c4", "wikitext2"])
def test_a_text_is_read_again_without_a_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    online = corpora.load(name, "train")
    assert ", commit " in online.source
    fixtures.use(hub.url, tmp_path / "hf", monkeypatch, offline=True)
    data_sets.asked_once.cache_clear()
    again = corpora.load(name, "train")
    assert (again.sha256, again.source) == (online.sha256, online.source)
