import gzip
import json
from pathlib import Path

import pytest

from tests.harness.records.test_record import make_record
from tests.harness.tracking.test_gating import perplexity, size
from trinity.harness.accuracy import task_data
from trinity.harness.records import record
from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics import comparison
from trinity.harness.tracking import differences, flips


def answers(samples: list[float], sha256: str = "0") -> Measurement:
    return Measurement(
        name="piqa",
        metric="acc",
        value=sum(samples) / len(samples),
        unit="1",
        higher_is_better=True,
        path="reference",
        engine="torch",
        samples=samples,
        details={"sha256": sha256, "examples_chosen": "first"},
    )


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three questions as local data; the sha256 of their file."""
    data = task_data.TASKS["piqa"]
    path = tmp_path / "data" / data.folder / f"{data.stem or data.split}.jsonl.gz"
    path.parent.mkdir(parents=True)
    rows = [{"goal": f"How to {x}?", "sol1": "a", "sol2": "b", "label": 0} for x in ("x", "y", "z")]
    text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text))
    monkeypatch.setenv("TRINITY_DATA_DIR", str(tmp_path / "data"))
    local = task_data.read("piqa")
    assert local is not None
    return local.source["sha256"]


def test_flipped_questions_are_shown_with_their_text_those_that_became_wrong_first(
    questions: str,
) -> None:
    found = flips.of([answers([1, 1, 0], questions)], [answers([0, 1, 1], questions)])
    assert [(flip.index, flip.right, flip.text) for flip in found] == [
        (2, False, "How to z? a b"),
        (0, True, "How to x? a b"),
    ]


def test_questions_of_other_data_than_the_records_are_not_shown(questions: str) -> None:
    (flip,) = flips.of([answers([1, 1, 0], "other")], [answers([1, 1, 1], "other")])
    assert flip.text == ""


def test_two_records_say_what_changed_largest_effect_first(tmp_path: Path) -> None:
    good = record.write(make_record(measurements=[perplexity(), size()]), tmp_path)
    other = make_record(measurements=[perplexity(0.3), size()], date="2026-01-03")
    bad = record.write(other.model_copy(update={"calibration": {"ids_sha256": "x"}}), tmp_path)
    found = differences.between(str(bad), str(good))
    assert [change.text for change in found.changes] == ["data calibration.ids_sha256: none -> x"]
    outcomes = comparison.judge(comparison.pairs([size(), perplexity(0.3)], [size(), perplexity()]))
    assert [o.metric for o in differences.largest_first(outcomes)] == ["perplexity", "stored_bytes"]
    data = differences.as_data(outcomes, found)
    assert json.loads(json.dumps(data)) == data
    assert len(differences.grids(outcomes, found)) == 2


def test_of_two_models_nothing_else_is_known() -> None:
    found = differences.between("random:tiny-llama", "random:tiny-llama")
    assert (found.changes, found.flips) == ([], [])
