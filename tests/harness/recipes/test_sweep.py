from pathlib import Path
from typing import Any

import pytest
import yaml

from trinity.harness.recipes import sweep
from trinity.harness.runs import requests
from trinity.methods.errors import ConfigError

CALIBRATED = {
    "model": {"id": "random:tiny-llama", "dtype": "bfloat16"},
    "compress": {"steps": [{"method": "wanda"}]},
    "calibration": {"dataset": "pydoc", "samples": 2, "seqlen": 64},
    "lower": {"target": "llvm-cpu", "context": 64},
}
DENSE = {"model": {"id": "random:tiny-llama"}}


def _write(folder: Path, asked: dict[str, Any], **recipes: dict[str, Any]) -> Path:
    for name, data in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    path = folder / "sweep.yaml"
    names = [f"{name}.yaml" for name in recipes]
    path.write_text(yaml.safe_dump({"recipes": names, **asked}), encoding="utf-8")
    return path


def test_every_combination_is_a_run_called_after_what_varies(tmp_path: Path) -> None:
    asked = {"models": ["a/one", "b/two"], "seeds": [3, 4], "targets": ["llvm-cpu", "vulkan"]}
    found = sweep.read(_write(tmp_path, asked, wanda=CALIBRATED))
    assert len(found) == 8
    assert {run.name for run in found} == {
        f"wanda-seed{seed}-{target}" for seed in (3, 4) for target in ("llvm-cpu", "vulkan")
    }
    for run in found:
        assert run.calibration
        assert run.lower
        assert f"-seed{run.calibration.seed}-{run.lower.target}" in run.name
        assert run.lower.context == 64


def test_a_recipe_without_the_section_that_varies_is_one_run(tmp_path: Path) -> None:
    asked = {"seeds": [0, 1], "targets": ["llvm-cpu", "vulkan"]}
    found = sweep.read(_write(tmp_path, asked, dense=DENSE, wanda=CALIBRATED))
    assert [run.name for run in found].count("dense") == 1
    assert len(found) == 5


def test_a_model_of_the_sweep_keeps_the_recipes_type_unless_it_names_one(tmp_path: Path) -> None:
    asked = {"models": ["a/one", {"id": "b/two", "dtype": "float16", "revision": "main"}]}
    one, two = sweep.read(_write(tmp_path, asked, wanda=CALIBRATED))
    assert (one.model.id, one.model.dtype) == ("a/one", "bfloat16")
    assert (two.model.dtype, two.model.revision) == ("float16", "main")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"seeds": [0]}, "`seeds` says what `calibration:` is to be"),
        ({"targets": ["vulkan"]}, "`targets` says what `lower:` is to be"),
        ({"model": ["a"]}, "unknown key `model`. Did you mean models"),
        ({"models": ["a/b", "a/b"]}, "gives two runs the name dense on a/b"),
        ({"recipes": []}, "recipes"),
        ({"recipes": ["absent.yaml"]}, "absent.yaml: cannot be read"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path: Path, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sweep.read(_write(tmp_path, asked, dense=DENSE))


def test_seeds_within_a_recipe_and_beside_it_are_refused(tmp_path: Path) -> None:
    twice = {**CALIBRATED, "calibration": {"dataset": "pydoc", "seeds": [0, 1]}}
    with pytest.raises(ConfigError, match=r"`calibration.seeds` and the sweep's `seeds`"):
        sweep.read(_write(tmp_path, {"seeds": [0, 1]}, wanda=twice))


def test_the_example_is_the_runs_that_its_page_says(project_root: Path) -> None:
    found = sweep.read(project_root / "docs" / "examples" / "sweep" / "sweep.yaml")
    assert [run.name for run in found] == [
        "dense",
        *(f"{name}-seed{seed}" for name in ("wanda-2of4", "gptq-int4") for seed in (0, 1)),
    ]
    for run in found:
        requests.check(run)
