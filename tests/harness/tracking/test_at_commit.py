import subprocess
from pathlib import Path

import pytest

from tests.harness.tracking.test_gating import git
from trinity.harness.tracking import at_commit
from trinity.methods.errors import ConfigError

PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "gated-example"
version = "{version}"
[tool.setuptools]
packages = ["gated_example"]
"""
ASK = (
    "import gated_example, pydantic, trinity.harness, importlib.metadata as m;"
    "print(gated_example.NUMBER, m.version('gated-example'))"
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose package says 1 in its first commit and 2 in its folder."""
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say: without, so no network
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    folder = tmp_path / "a project"
    (folder / "gated_example").mkdir(parents=True)
    for number in (1, 2):
        version = PROJECT.format(version=number)
        (folder / "pyproject.toml").write_text(version, encoding="utf-8")
        (folder / "gated_example" / "__init__.py").write_text(f"NUMBER = {number}\n", "utf-8")
        if number == 1:
            git(folder, "init", "--quiet")
            git(folder, "add", ".")
            git(folder, "commit", "--quiet", "--message", "one")
    return folder


def test_the_project_of_a_commit_runs_on_this_environments_packages_and_is_gone_after(
    project: Path,
) -> None:
    with at_commit.checked_out("HEAD", project) as checkout:
        command = [checkout.python, "-P", "-c", ASK]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert said.split() == ["1", "1"]
        assert checkout.commit == git(project, "rev-parse", "HEAD").strip()
    assert not checkout.folder.exists()
    assert len(git(project, "worktree", "list").splitlines()) == 1
    assert (project / "gated_example" / "__init__.py").read_text("utf-8") == "NUMBER = 2\n"


def test_what_is_no_commit_is_refused(project: Path, tmp_path: Path) -> None:
    for ref, folder in (("no-such", project), ("HEAD", tmp_path)):
        with (
            pytest.raises(ConfigError, match=f"run:{ref}: is no commit"),
            at_commit.checked_out(ref, folder),
        ):
            pass
