"""What can be known to be wrong with a command is said before anything heavy is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from trinity.harness.models import folders
from trinity.harness.runs import requests
from trinity.methods.errors import ConfigError

FACTS: dict[str, Any] = {
    "target": "vulkan",
    "checkpoint": {"name": "slim", "sha256": "0"},
    "vocabulary": 258,
    "logit_errors": None,
}


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A folder as `trinity lower` makes it, as far as its words go."""
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / folders.MODULE).touch()
    (folder / folders.LOWERED).write_text(json.dumps(FACTS), encoding="utf-8")
    return folder


def _evaluation(model: Path, suite: str, engine: str, target: str) -> requests.Evaluation:
    sizes = {"limit": None, "windows": None, "seqlen": None}
    return requests.evaluation(str(model), [suite], sizes, engine, target)


def test_a_compiled_module_may_be_evaluated_on_its_target(module: Path) -> None:
    asked = _evaluation(module, "perplexity-pydoc", "iree", "vulkan")
    assert asked.lower is not None
    assert asked.lower.target == "vulkan"


@pytest.mark.parametrize(
    ("suite", "engine", "target", "said"),
    [
        ("perplexity-pydoc", "torch", "vulkan", "--engine iree, or evaluate .*'slim'"),
        ("perplexity-pydoc", "iree", "llvm-cpu", "compiled for vulkan, not for llvm-cpu"),
        ("fidelity-pydoc", "iree", "vulkan", "compares with the dense model"),
    ],
)
def test_a_compiled_module_says_how_it_is_evaluated(
    module: Path, suite: str, engine: str, target: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        _evaluation(module, suite, engine, target)


def test_a_module_without_its_facts_is_told_from_an_absent_folder(module: Path) -> None:
    (module / folders.LOWERED).unlink()
    with pytest.raises(ConfigError, match="Lower the checkpoint again"):
        _evaluation(module, "perplexity-pydoc", "iree", "vulkan")
    (module / folders.LOWERED).write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="lacks checkpoint, logit_errors, target, vocabulary"):
        _evaluation(module, "perplexity-pydoc", "iree", "vulkan")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (list(FACTS), "holds list"),
        ({**FACTS, "checkpoint": "x"}, "has checkpoint 'x'"),
        ({**FACTS, "checkpoint": {}}, "has checkpoint {}"),
        ({**FACTS, "vocabulary": "5"}, "has vocabulary '5'"),
        ({**FACTS, "target": 5}, "has target 5"),
    ],
)
def test_damaged_facts_of_a_module_are_named(module: Path, content: Any, said: str) -> None:
    (module / folders.LOWERED).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{said}.*Lower the checkpoint again"):
        _evaluation(module, "perplexity-pydoc", "torch", "vulkan")


def test_a_module_is_not_timed_but_its_checkpoint_is(module: Path) -> None:
    with pytest.raises(ConfigError, match=r"give the checkpoint that it was made from.*'slim'"):
        requests.benching(str(module), ["decode"], ["iree"], "vulkan", 64, {})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such folder"),
        ({}, "holds no config.json"),
        ({"config.json": "{}"}, "holds a model that is not compressed"),
        ({"config.json": "{"}, "holds a model that is not compressed"),
        ({"module.vmfb": ""}, "is a compiled module already"),
    ],
)
def test_what_is_no_checkpoint_says_what_it_is(
    content: dict[str, str] | None, said: str, tmp_path: Path
) -> None:
    folder = tmp_path / "some"
    for name, text in (content or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    if content is not None:
        folder.mkdir(exist_ok=True)
    with pytest.raises(ConfigError, match=f"{said}.*made by `trinity compress`"):
        requests.lowering(folder, ("llvm-cpu", "host"), None, (8, 64), tmp_path / "out")


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "some").touch()
    with pytest.raises(ConfigError, match="is a file"):
        requests.lowering(tmp_path / "some", ("llvm-cpu", "host"), None, (8, 64), tmp_path / "out")
