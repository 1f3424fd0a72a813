"""docs/tracking.md: its files, taken out of the page, do what the page says."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.tracking.test_gating import git
from trinity.harness.recipes import recipe
from trinity.harness.tracking import at_commit, policy

FILE = re.compile(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WELL, PLANTED = "nm_mask(W.float().abs()", "nm_mask(-W.float().abs()"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    """The page's files in a repository of their own, as the page commits them."""
    folder = tmp_path_factory.mktemp("my methods")
    page = (project_root / "docs" / "tracking.md").read_text(encoding="utf-8")
    for name, text in FILE.findall(page):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "A method and its gate")
    return folder


def test_the_pages_policy_and_recipe_are_read(project: Path) -> None:
    asked = policy.read(project / "gate.yaml")
    (path,) = policy.recipes(asked, project)
    assert recipe.read(path, []).name == "smoke"
    assert WELL in (project / "src/my_methods/largest.py").read_text("utf-8")


def test_the_pages_workflow_gives_the_reusable_one_what_it_takes(
    project: Path, project_root: Path
) -> None:
    def read(path: Path) -> dict[Any, Any]:
        found: dict[Any, Any] = yaml.safe_load(path.read_text("utf-8"))
        return found

    ours = project_root / ".github" / "workflows" / "gate.yml"
    inputs = read(ours)[True]["workflow_call"]["inputs"]  # YAML reads `on` as true
    (job,) = read(project / ".github" / "workflows" / "gate.yml")["jobs"].values()
    assert job["uses"].partition("@")[0].endswith(str(ours.relative_to(project_root)))
    required = {name for name, given in inputs.items() if given.get("required")}
    assert required <= set(job["with"]) <= set(inputs)
    script = "\n".join(step.get("run", "") for step in read(ours)["jobs"]["gate"]["steps"])
    assert "${{" not in script  # text of a pull request is never part of a script


@pytest.mark.slow
def test_a_newcomers_gate_passes_fails_on_a_planted_regression_and_passes_again(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say: without
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    python = at_commit.installed(project, tmp_path / "venv")
    source = project / "src" / "my_methods" / "largest.py"
    well = source.read_text("utf-8")
    codes = []
    for text in (well, well.replace(WELL, PLANTED), well):
        source.write_text(text, encoding="utf-8")
        command = [python, "-P", "-m", "trinity.harness.cli", "gate", "--policy", "gate.yaml"]
        command += ["--baseline", "run:HEAD", "--quiet"]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
        print(done.stdout, done.stderr)
        codes.append(done.returncode)
    assert codes == [0, 1, 0]
    assert "passed" in (project / "gate-results" / "gate.md").read_text("utf-8")
