import re
from pathlib import Path

import pytest

from trinity.harness.recipes import recipe
from trinity.methods.errors import ConfigError

MINIMAL = "model: {id: some/model}\n"


def _read(tmp_path: Path, text: str, overrides: list[str] | None = None) -> recipe.Recipe:
    path = tmp_path / "my-recipe.yaml"
    path.write_text(text)
    return recipe.read(path, overrides or [])


def test_what_is_left_out_is_not_done(tmp_path: Path) -> None:
    found = _read(tmp_path, MINIMAL)
    assert found.name == "my-recipe"
    assert (found.calibration, found.lower, found.evaluate, found.bench) == (None,) * 4
    assert found.compress.steps == ()


def test_an_unquoted_pattern_stays_text(tmp_path: Path) -> None:
    found = _read(
        tmp_path, MINIMAL + "compress: {steps: [{method: wanda, pattern: 2:4, norm: shifted}]}\n"
    )
    assert found.compress.steps[0].options == {"pattern": "2:4", "norm": "shifted"}


@pytest.mark.parametrize("written", ["2024-01-02", "2024-13-45"])
def test_an_unquoted_date_stays_text(tmp_path: Path, written: str) -> None:
    read = _read(tmp_path, f"model: {{id: m, revision: {written}}}", [f"name={written}"])
    assert (read.model.revision, read.name) == (written, written)


@pytest.mark.parametrize(
    "value", ["!!int x", "!!timestamp x", "!!float x", "!!bool x", r'"\uD800"']
)
def test_a_value_that_is_not_of_its_tag_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"my-recipe.*is not of the type.*line 1"):
        _read(tmp_path, f"model: {{id: m, revision: {value}}}")
    with pytest.raises(ConfigError, match="--set name"):
        _read(tmp_path, "model: {id: m}", [f"name={value}"])


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    found = _read(tmp_path, MINIMAL + "compress: {steps: [{method: m, bits: 4, rank: 0.1}]}\n")
    assert found.compress.steps[0].options == {"bits": 4, "rank": 0.1}


def test_suites_may_be_names(tmp_path: Path) -> None:
    text = MINIMAL + "evaluate: {suites: [a, {suite: b, limit: 3}]}\n"
    found = _read(tmp_path, text).evaluate
    assert found is not None
    assert [(s.suite, s.limit) for s in found.suites] == [("a", None), ("b", 3)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("calibation: {}\n", "unknown key `calibation`. Did you mean calibration?"),
        ("calibration: {sample: 3}\n", "unknown key `calibration.sample`. Did you mean samples"),
        ("model2: 1\n", "`model2`"),
        ("calibration: {samples: 0}\n", "`calibration.samples`"),
        ("evaluate: {suites: [{suite: a, limits: 3}]}\n", "Did you mean limit"),
    ],
)
def test_a_wrong_key_is_named_with_the_right_one(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, MINIMAL + text)
    assert expected in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "", "a: [", "model: {id: x}\n\tb: 1"])
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="my-recipe"):
        _read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL + MINIMAL, "`model` is given twice, in lines 1 and 2"),
        (MINIMAL + "bench: {new: 1,\n  new: 2}\n", "`new` is given twice, in lines 2 and 3"),
        ("model: {id: a, 'id': b}\n", "`id` is given twice, in lines 1 and 1"),
        (MINIMAL + "compress: {layers: {a*: [], a*: []}}\n", "`a*` is given twice"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        _read(tmp_path, text)


def test_a_key_of_an_override_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set bench=.*`new` is given twice"):
        _read(tmp_path, MINIMAL, ["bench={new: 1, new: 2}"])


def test_what_is_merged_into_a_mapping_may_be_overridden(tmp_path: Path) -> None:
    text = MINIMAL + "bench: {<<: {new: 1, repeats: 3}, new: 2}\n"
    found = _read(tmp_path, text).bench
    assert found is not None
    assert (found.new, found.repeats) == (2, 3)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../a", "a b"])
def test_a_name_is_the_name_of_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"`name`.*is to name files"):
        _read(tmp_path, MINIMAL + f"name: '{name}'\n")


def test_a_recipe_is_read_as_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf# half \xe2\x80\x93 masked\n" + MINIMAL.encode())
    assert recipe.read(path, []).model.id == "some/model"
    path.write_bytes(MINIMAL.encode() + b"# gro\xdf\n")
    with pytest.raises(ConfigError, match="byte 0xdf in line 2, after 5 bytes"):
        recipe.read(path, [])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        recipe.read(tmp_path / "absent.yaml", [])


def test_overrides_reach_into_sections_and_lists(tmp_path: Path) -> None:
    text = MINIMAL + "compress: {steps: [{method: wanda, pattern: 1:2}]}\n"
    found = _read(
        tmp_path,
        text,
        ["calibration.samples=7", "compress.steps.0.pattern=2:4", "model.dtype=float16"],
    )
    assert found.calibration is not None
    assert found.calibration.samples == 7
    assert found.compress.steps[0].options["pattern"] == "2:4"
    assert found.model.dtype == "float16"


@pytest.mark.parametrize(
    "override", ["novalue", "compress.steps.5.bits=3", "model.id.deep=1", "=3"]
)
def test_an_override_without_a_place_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        _read(tmp_path, MINIMAL + "compress: {steps: [{method: dense}]}\n", [override])


def test_groups_of_fp8_inputs_are_refused() -> None:
    data = {"model": {"id": "m"}, "compress": {"inputs": {"kind": "fp8", "group_size": 128}}}
    with pytest.raises(ConfigError, match=r"compress\.inputs\.group_size.*one scale"):
        recipe.parse(data, "test")


def test_the_first_of_several_seeds_is_the_seed() -> None:
    spec = recipe.CalibrationSpec.model_validate({"seeds": [7, 8]})
    assert (spec.seed, spec.seeds) == (7, (7, 8))
    assert spec.with_seed(8) == recipe.CalibrationSpec(seed=8)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"seeds": [1, 1]}, "twice"), ({"seed": 0, "seeds": [1, 2]}, "not the first of seeds")],
)
def test_seeds_that_contradict_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe.parse({"model": {"id": "m"}, "calibration": values}, "test")


@pytest.mark.parametrize(
    ("given", "expected"), [({}, (1,)), ({"batch": 4}, (4,)), ({"batch": [1, 4, 16]}, (1, 4, 16))]
)
def test_a_batch_is_a_number_or_several(given: dict[str, object], expected: object) -> None:
    found = recipe.parse({"model": {"id": "m"}, "bench": given}, "test").bench
    assert found is not None
    assert found.batch == expected


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (0, r"`bench\.batch\.0`: should be greater than 0"),
        ([1, -4], r"`bench\.batch\.1`: should be greater than 0"),
        (2.5, r"`bench\.batch\.0`: should be a valid integer"),
        ("1,4", r"`bench\.batch\.0`: should be a valid integer"),
        ([4, 1, 4], r"`bench\.batch`: .*\[4, 1, 4\] names a batch twice"),
        ([], r"`bench\.batch`: .*names no batch"),
    ],
)
def test_a_batch_that_is_none_is_refused(batch: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe.parse({"model": {"id": "m"}, "bench": {"batch": batch}}, "test")


def test_a_suite_named_twice_is_refused() -> None:
    twice = [{"suite": "perplexity-pydoc", "seqlen": n} for n in (64, 128)]
    with pytest.raises(ConfigError, match="names suite 'perplexity-pydoc' twice"):
        recipe.parse({"model": {"id": "m"}, "evaluate": {"suites": twice}}, "test")


def test_a_resolution_is_of_every_suite() -> None:
    evaluate = {"resolve": "4 points", "suites": ["a", {"suite": "b", "resolve": "1.5 points"}]}
    found = recipe.parse({"model": {"id": "m"}, "evaluate": evaluate}, "test")
    assert found.evaluate is not None
    assert [spec.resolve for spec in found.evaluate.suites] == ["4 points", "1.5 points"]
    assert recipe.parse(found.model_dump(mode="json"), "test") == found  # as a record has it


def test_a_resolution_may_be_one_of_each_unit() -> None:
    evaluate = {"resolve": ["4 points", "1.05x"], "suites": ["a"]}
    found = recipe.parse({"model": {"id": "m"}, "evaluate": evaluate}, "test")
    assert found.evaluate is not None
    assert found.evaluate.suites[0].resolve == ("4 points", "1.05x")
    assert recipe.parse(found.model_dump(mode="json"), "test") == found  # as a record has it


@pytest.mark.parametrize(
    "wanted",
    [
        *("4", "4 %", "0 points", "101 points", "-1 points", "1x", "0.9x", "0 nats", 4, []),
        ["4 points", "2 points"],
    ],
)
def test_what_is_no_resolution_is_refused(wanted: object) -> None:
    data = {"model": {"id": "m"}, "evaluate": {"resolve": wanted, "suites": ["a"]}}
    with pytest.raises(ConfigError, match=r"evaluate\.resolve"):
        recipe.parse(data, "test")
