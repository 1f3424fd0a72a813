"""docs/adding-a-method.md: its files, taken out of the page, do what the page says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILE = re.compile(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
USE = """
import contextlib, io, json, sys
import pytest
import torch
from trinity.harness import cli

torch.set_num_threads(1)

def trinity(*words):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["trinity", *words]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            return end.code or 0, out.getvalue() + (err.getvalue() if end.code else "")
    return 0, out.getvalue()

with contextlib.redirect_stdout(sys.stderr):
    tests = pytest.main(["-q", "-p", "no:cacheprovider", "tests/test_square.py"])
print(json.dumps({
    "tests": int(tests),
    "list": trinity("methods", "list", "--json"),
    "check": trinity("methods", "check", "my-methods"),
    "other": trinity("methods", "check", "square", "--set", "pattern=1:4"),
    "run": trinity("run", "recipe.yaml", "--quiet"),
    "repro": trinity("repro", "square", "--profile", "smoke", "--quiet"),
    "compress": trinity(
        "compress", "random:tiny-llama", "--method", "ternary", "--out", "ternary-model", "--quiet"
    ),
    "eval": trinity(
        "eval", "ternary-model", "--suite", "perplexity-pydoc", "--windows", "2", "--seqlen", "128",
        "--quiet",
    ),
    "lower": trinity("lower", "ternary-model", "--out", "module", "--quiet"),
}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """The page's files, and the package installed in `site` beside them."""
    folder = tmp_path_factory.mktemp("my-methods")
    page = (project_root / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
    files = FILE.findall(page)
    assert len(files) == 6
    for name, text in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-build-isolation", "--no-deps", "--no-index", "--target", "site", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def used(package: Path) -> dict[str, tuple[int, str]]:
    """Exit code and output of every command that the page names."""
    path = os.pathsep.join(filter(None, [str(package / "site"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=package,
        env={**os.environ, "PYTHONPATH": path, "TRINITY_CACHE": str(package / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str]] = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("tests") == 0, done.stderr
    return found


def test_the_new_method_is_listed_with_what_it_needs_and_gives(used: dict[str, list[str]]) -> None:
    rows = {row["name"]: row for row in json.loads(used["list"][1])}
    assert rows["square"] == {
        "name": "square",
        "paper": "none: an example",
        "needs": "x_mean_abs",
        "format": "2:4 float32",
        "owner": "my-methods",
    }


@pytest.mark.parametrize("which", ["check", "other"])
def test_it_conforms(which: str, used: dict[str, list[str]]) -> None:
    assert used[which][0] == 0
    assert "square: conforms\n" in used[which][1]
    assert ("ternary: conforms\n" in used[which][1]) == (which == "check")


def test_its_recipe_runs_and_leaves_a_record(used: dict[str, list[str]], package: Path) -> None:
    code, text = used["run"]
    assert code == 0
    assert "perplexity-pydoc" in text
    assert list((package / "results" / "v1" / "tiny-llama-random" / "recipe").glob("*.json"))


def test_its_row_is_in_a_table(used: dict[str, list[str]], package: Path) -> None:
    code, text = used["repro"]
    assert code == 0
    (written,) = (package / "smoke-results" / "tables" / "square").glob("*.md")
    for label in ("Square", "Wanda"):
        assert label in text
        rows = [r for r in written.read_text(encoding="utf-8").splitlines() if label in r]
        assert any("2:4" in row and "17.00" in row for row in rows)


def test_values_of_its_own_are_stored_and_evaluated_in_torch(
    used: dict[str, list[str]], package: Path
) -> None:
    code, text = used["compress"]
    assert code == 0, text
    config = json.loads((package / "ternary-model" / "config.json").read_text(encoding="utf-8"))
    formats = config["quantization_config"]["layers"].values()
    assert {layout["label"] for layout in formats} == {"ternary"}
    assert all(layout["ternary"] == {} for layout in formats)
    code, text = used["eval"]
    assert code == 0, text
    assert "perplexity-pydoc" in text


def test_values_of_its_own_are_refused_by_name_in_a_module(used: dict[str, list[str]]) -> None:
    code, text = used["lower"]
    assert code == 2
    assert "and not values of the kind 'ternary'" in " ".join(text.split())
