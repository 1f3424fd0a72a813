import json
from pathlib import Path
from typing import Any

import pytest

from trinity.harness.records import record
from trinity.harness.records.measurement import Interval, Measurement
from trinity.methods.errors import RecordError


def make_record(**changes: Any) -> record.Record:
    """A record with one accuracy and one latency."""
    accuracy = Measurement(
        name="piqa",
        metric="acc",
        value=0.75,
        unit="fraction",
        higher_is_better=True,
        path="simulated",
        engine="torch",
        interval=Interval(low=0.4, high=0.9, method="Wilson"),
        samples=[1, 1, 1, 0],
        details={"lm_eval_version": "0.4.13", "task_version": 1, "num_fewshot": 0},
    )
    speed = Measurement(
        name="decode",
        metric="tokens_per_s",
        value=None,
        unit="tokens/s",
        higher_is_better=True,
        path="compiled",
        engine="iree",
        reason="no device",
    )
    data: dict[str, Any] = {
        "date": "2026-01-02",
        "recipe": {"name": "dense", "model": {"id": "m", "dtype": "float32"}, "bench": None},
        "model": record.ModelInfo(id="m", label="M", revision=None, sha256="0", note=""),
        "calibration": None,
        "checkpoint": record.CheckpointInfo(
            fingerprint="f", bits_per_weight=4.5, stored_bytes={"linears": 9, "rest": 1}, layers={}
        ),
        "lowering": None,
        "measurements": [accuracy, speed],
        "environment": {
            "machine": "box",
            "commit": "abc",
            "dirty": False,
            "cpu": "Box",
            "cores": 2,
            "threads": 2,
            "packages": {"compression-trinity": "0", "torch": "1", "iree-base-compiler": "2"},
        },
    }
    return record.Record(**{**data, **changes})


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = record.write(make_record(), tmp_path)
    assert path == tmp_path / "v1" / "M" / "dense" / "box-2026-01-02.json"
    assert record.read(path) == make_record()


def test_an_equal_record_is_not_written_twice(tmp_path: Path) -> None:
    assert record.write(make_record(), tmp_path) == record.write(make_record(), tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_another_record_of_the_same_day_takes_no_ones_place(tmp_path: Path) -> None:
    first = record.write(make_record(), tmp_path)
    before = first.read_bytes()
    second = record.write(make_record(calibration={"seed": 1}), tmp_path)
    third = record.write(make_record(calibration={"seed": 2}), tmp_path)
    assert [p.name for p in (second, third)] == ["box-2026-01-02-2.json", "box-2026-01-02-3.json"]
    assert first.read_bytes() == before


def test_lm_evals_keys_are_there() -> None:
    data = record.to_json(make_record())
    assert data["results"]["piqa"]["acc,none"] == 0.75
    assert data["results"]["piqa"]["acc_stderr,none"] == pytest.approx(0.25)
    assert data["versions"] == {"piqa": 1}
    assert data["n-shot"] == {"piqa": 0}
    assert data["higher_is_better"] == {"piqa": {"acc": True}}
    assert data["n-samples"] == {"piqa": {"effective": 4}}
    assert "decode" not in data["results"]


def test_flips_of_a_task_are_not_lm_evals_result() -> None:
    (accuracy, *others) = make_record().measurements
    flips = accuracy.model_copy(update={"metric": "flip_rate", "value": 0.25})
    data = record.to_json(make_record(measurements=[accuracy, flips, *others]))
    assert data["results"]["piqa"]["acc,none"] == 0.75
    assert data["higher_is_better"] == {"piqa": {"acc": True}}


def test_a_newer_record_says_to_upgrade(tmp_path: Path) -> None:
    path = record.write(make_record(), tmp_path)
    data = json.loads(path.read_text()) | {"schema_version": 99}
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=r"version 99.*Upgrade"):
        record.read(path)


@pytest.mark.parametrize("key", ["recipe.name", "environment.machine"])
def test_a_record_without_what_names_it_is_damaged(tmp_path: Path, key: str) -> None:
    path = record.write(make_record(), tmp_path)
    data = json.loads(path.read_text())
    section, name = key.split(".")
    del data[section][name], data["sha256"]
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=rf"\.json: has no `{key}`"):
        record.read(path)


def test_a_number_that_changed_on_disk_is_found_and_older_files_have_no_sum(
    tmp_path: Path,
) -> None:
    path = record.write(make_record(), tmp_path)
    data = json.loads(path.read_text())
    data["measurements"][0]["value"] += 0.5
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=r"damaged, or was edited"):
        record.read(path)
    del data["sha256"]
    path.write_text(json.dumps(data))
    record.read(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 100_000, '{"schema_version": 1}', '{"schema_version": null}'],
    ids=range(6),
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"broken\.json"):
        record.read(path)


def test_the_published_schema_is_that_of_the_code(project_root: Path) -> None:
    published = json.loads((project_root / "results" / "schema" / "record-v2.json").read_text())
    assert published == record.json_schema()


def test_every_committed_record_can_be_read(project_root: Path) -> None:
    for found in record.read_all(project_root / "results"):
        assert found.measurements


@pytest.mark.parametrize(
    ("label", "name"), [("..", "dense"), ("M", ".."), ("", "dense"), ("M", "a/b")]
)
def test_a_record_never_leaves_its_folder(tmp_path: Path, label: str, name: str) -> None:
    model = record.ModelInfo(id="m", label=label, revision=None, sha256="0", note="")
    with pytest.raises(RecordError, match="cannot name the folder"):
        record.write(make_record(model=model, recipe={"name": name}), tmp_path / "results")
    with pytest.raises(RecordError, match="cannot name the folder"):
        record.check_writable(tmp_path, label, name)
    assert list(tmp_path.iterdir()) == []
