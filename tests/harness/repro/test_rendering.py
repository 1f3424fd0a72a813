"""The commands' own rules, on the records that are committed."""

import json
from pathlib import Path

import pytest

from trinity.harness.recipes import paper
from trinity.harness.repro.rendering import render_tables
from trinity.methods.errors import ConfigError


def _one_record(
    project_root: Path,
    out: Path,
    steps: list[dict[str, object]],
    name: str = "record",
    row: str = "wanda-2of4",
    **compress: object,
) -> None:
    """A copy of a committed record of 2:4 Wanda, of a recipe with these steps and options.

    name: of the file   row: of the recipe
    """
    folder = project_root / "results" / "v1" / "SmolLM2-135M-Instruct" / "wanda-2of4"
    found = json.loads(next(folder.glob("*.json")).read_text("utf-8"))
    found.pop("sha256", None)  # of what it was before this
    found["recipe"]["compress"] |= {"steps": steps, **compress}
    found["recipe"]["name"] = row
    place = out / "v1" / "SmolLM2-135M-Instruct" / "wanda-2of4"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.json").write_text(json.dumps(found), "utf-8")


STEPS: list[dict[str, object]] = [
    {"method": "rtn", "bits": 4, "group_size": 64},
    {"method": "wanda", "pattern": "2:4"},
]


def test_a_table_is_rendered_from_the_record_of_its_rows_steps(
    project_root: Path, tmp_path: Path
) -> None:
    _one_record(project_root, tmp_path, STEPS)
    (rendered,) = render_tables("slim", "embedded", tmp_path)
    assert all(path.exists() for path in rendered.files)
    text = next(tmp_path.rglob("*.md")).read_text("utf-8")
    assert "| Wanda | Group AbsMax |" in text


def test_a_record_of_other_steps_is_not_the_row_of_its_name(
    project_root: Path, tmp_path: Path
) -> None:
    _one_record(project_root, tmp_path, [STEPS[0], {"method": "wanda", "pattern": "4:8"}])
    with pytest.raises(ConfigError, match="holds no record"):
        render_tables("slim", "embedded", tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        {"order": "true-sequential"},
        {"skip": ["*.self_attn.*"]},
        {"inputs": {"kind": "fp8", "group_size": None}},
        {"tune": {"method": "slim-tune", "data": None}},
    ],
)
def test_a_record_compressed_otherwise_is_not_the_row_of_its_name(
    project_root: Path, tmp_path: Path, other: dict[str, object]
) -> None:
    _one_record(project_root, tmp_path, STEPS, **other)
    with pytest.raises(ConfigError, match="holds no record"):
        render_tables("slim", "embedded", tmp_path)


@pytest.mark.parametrize("at_hand", [0, 2])
def test_a_tuned_row_is_rendered_whichever_text_of_the_profile_it_was_tuned_on(
    project_root: Path, tmp_path: Path, at_hand: int
) -> None:
    slim = paper.load("slim")
    embedded, table = slim.profiles["embedded"], slim.tables["table9"]
    row = next(row for row in table.rows if row.name == "acc-slim-lora-tuned")
    planned = paper.recipe(
        embedded, embedded.data[at_hand], embedded.models[0], table, row, "2:4"
    ).model_dump(mode="json")["compress"]
    _one_record(project_root, tmp_path, row=f"{row.name}-2of4", **planned)
    (rendered,) = render_tables("slim", "embedded", tmp_path)
    text = rendered.files[0].read_text("utf-8")
    assert rendered.files[0].name.startswith("table9-")
    assert "| SLiM-LoRA + fine-tuning | SLiM-Quant^W | 2:4 |" in text
    tuned_on = planned["tune"]["data"]
    assert f"on {tuned_on['samples']} windows of {tuned_on['seqlen']} tokens" in text
    assert f"of {tuned_on['dataset']} (" in text


def test_a_dense_row_alone_is_no_table(project_root: Path, tmp_path: Path) -> None:
    """Tables share it: rendering each of them for its sake would leave empty ones."""
    _one_record(project_root, tmp_path, [], row="acc-slim-dense")
    with pytest.raises(ConfigError, match="holds no record"):
        render_tables("slim", "embedded", tmp_path)


def test_of_two_records_of_a_day_the_later_one_is_taken(project_root: Path, tmp_path: Path) -> None:
    other = [STEPS[0], {"method": "wanda", "pattern": "4:8"}]
    for name, steps in (("run-9", other), ("run", other), ("run-10", STEPS)):
        _one_record(project_root, tmp_path, steps, name)
    assert render_tables("slim", "embedded", tmp_path)
