import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness.records.test_record import make_record
from trinity.harness.recipes import recipe
from trinity.harness.records import migrations, record
from trinity.harness.tracking import changes
from trinity.methods.errors import RecordError

SPEEDUP = {
    "name": "decode",
    "metric": "speedup",
    "value": 2.0,
    "unit": "1",
    "higher_is_better": True,
    "path": "kernel",
    "engine": "iree",
    "details": {"baseline_model": "dense (abc)"},
}


def first_version(**changed: Any) -> dict[str, Any]:
    """A file as the first version was written, before some options were."""
    data = record.to_json(make_record())
    del data["sha256"]
    old = {"name": "dense", "model": {"id": "m", "dtype": "float32"}, "compress": {"steps": []}}
    return {**data, "schema_version": 1, "recipe": old, "measurements": [SPEEDUP], **changed}


def test_there_is_a_step_from_every_version_to_the_next() -> None:
    assert set(migrations.STEPS) == set(range(1, migrations.SCHEMA_VERSION))


def test_a_file_of_the_first_version_is_read_whole_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(first_version()), encoding="utf-8")
    before = path.read_bytes()
    found = record.read(path)
    assert found.recipe["compress"] == {
        "steps": [],
        "order": "block",
        "inputs": None,
        "tune": None,
    }
    assert found.measurements[0].details["dense_model"] == "0 in float32"
    assert found.schema_version == 1
    assert path.read_bytes() == before


def test_what_a_file_says_is_not_replaced(tmp_path: Path) -> None:
    old = first_version()
    old["recipe"]["compress"]["order"] = "true-sequential"
    old["measurements"] = [{**SPEEDUP, "details": {"dense_model": "other"}}]
    found = record.parse(json.dumps(old), "old")
    assert found.recipe["compress"]["order"] == "true-sequential"
    assert found.measurements[0].details["dense_model"] == "other"


def test_a_file_of_todays_version_is_not_touched() -> None:
    data = record.to_json(make_record())
    assert migrations.migrated(data, migrations.SCHEMA_VERSION) is data


def test_an_option_that_came_after_a_committed_record_is_no_change(project_root: Path) -> None:
    for found in record.read_all(project_root / "results"):
        whole = recipe.parse(dict(found.recipe), "recipe").model_dump(mode="json")
        assert changes.between(found.model_copy(update={"recipe": whole}), found) == []


@pytest.mark.parametrize("version", [migrations.SCHEMA_VERSION + 1, 0, -1])
def test_another_version_is_refused_with_what_to_do(version: int) -> None:
    text = json.dumps(first_version(schema_version=version))
    with pytest.raises(RecordError, match=rf"version {version}, .* Upgrade with `pip install -U"):
        record.parse(text, "new.json")


@pytest.mark.parametrize("key", ["recipe", "model", "measurements"])
@pytest.mark.parametrize("value", [None, 3, "x"])
def test_a_damaged_file_of_the_first_version_is_one_paragraph(key: str, value: Any) -> None:
    with pytest.raises(RecordError, match=r"old\.json"):
        record.parse(json.dumps(first_version(**{key: value})), "old.json")


def test_the_schema_of_the_first_version_stays_published_and_holds_todays_records_too(
    project_root: Path,
) -> None:
    """Its readers go on: version 2 fills in, and takes nothing away."""
    folder = project_root / "results" / "schema"
    first, today = (json.loads((folder / f"record-v{n}.json").read_text("utf-8")) for n in (1, 2))
    assert first["properties"].keys() <= today["properties"].keys()
    for name, part in first["$defs"].items():
        assert part["properties"].keys() <= today["$defs"][name]["properties"].keys()
