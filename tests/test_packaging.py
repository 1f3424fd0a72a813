"""What is declared, what is on disk and what the wheel holds are the same thing."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

COMPILER_STACK = ("torch", "torch-mlir", "iree-base-compiler", "iree-base-runtime")
CODE_FOLDERS = ("harness", "lowering", "methods")
PUBLISHED = "trinity.published"  # a folder of data, results/published, installed without code
NOT_DATA = ("*.pyc", "*.pyo", ".DS_Store", "*.swp")


@pytest.fixture(scope="module")
def pyproject(project_root: Path) -> dict[str, Any]:
    return tomllib.loads((project_root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def constraints(project_root: Path) -> dict[str, str]:
    """Normalized name -> pinned version."""
    lines = (project_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    return {normalized(name): version for name, _, version in (pin.partition("==") for pin in pins)}


@pytest.fixture(scope="module")
def wheel_files(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel built without a network, from a copy: setuptools leaves a build/ behind."""
    tree = tmp_path_factory.mktemp("packaging") / "tree"
    tree.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in (*CODE_FOLDERS, "tests", "results"):
        shutil.copytree(project_root / folder, tree / folder, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project_root / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tree / "out"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tree / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def normalized(name: str) -> str:
    """One spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).strip().lower()


def source_files(root: Path) -> set[Path]:
    """Files of the code folders, relative to the checkout; caches and editor leftovers aside."""
    return {
        path.relative_to(root)
        for folder in CODE_FOLDERS
        for path in (root / folder).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and not any(fnmatch(path.name, pattern) for pattern in NOT_DATA)
    }


def test_every_folder_with_python_files_is_a_listed_package_and_the_reverse(
    project_root: Path, pyproject: dict[str, Any]
) -> None:
    on_disk = {
        ".".join(("trinity", *path.parent.parts))
        for path in source_files(project_root)
        if path.suffix == ".py"
    }
    listed = pyproject["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({*on_disk, PUBLISHED})


def test_every_listed_package_has_an_init_file(
    project_root: Path, pyproject: dict[str, Any]
) -> None:
    for package in set(pyproject["tool"]["setuptools"]["packages"]) - {PUBLISHED}:
        folder = project_root.joinpath(*package.split(".")[1:])
        assert (folder / "__init__.py").is_file(), package


def test_wheel_holds_every_module_and_data_file(project_root: Path, wheel_files: set[str]) -> None:
    expected = {f"trinity/{path.as_posix()}" for path in source_files(project_root)}
    published = (project_root / "results" / "published").iterdir()
    expected |= {f"trinity/published/{path.name}" for path in published}
    installed = {name for name in wheel_files if ".dist-info/" not in name}
    assert installed == expected


def test_wheel_puts_one_name_in_the_users_import_space(wheel_files: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_files if ".dist-info/" not in name}
    assert tops == {"trinity"}


def test_trinity_stays_a_namespace(wheel_files: set[str]) -> None:
    assert "trinity/__init__.py" not in wheel_files


def test_wheel_carries_the_licence(wheel_files: set[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel_files)


def test_every_code_folder_is_marked_as_typed(wheel_files: set[str]) -> None:
    assert {f"trinity/{folder}/py.typed" for folder in CODE_FOLDERS} <= wheel_files


def test_command_points_at_a_module_that_is_packaged(
    pyproject: dict[str, Any], wheel_files: set[str]
) -> None:
    module, _, _ = pyproject["project"]["scripts"]["trinity"].partition(":")
    assert module.replace(".", "/") + ".py" in wheel_files


def test_constraints_pin_the_compiler_stack_exactly(constraints: dict[str, str]) -> None:
    for name in COMPILER_STACK:
        assert re.fullmatch(r"[0-9]+(\.[0-9]+)*", constraints[name]), (name, constraints[name])


def test_both_iree_packages_are_pinned_to_one_version(constraints: dict[str, str]) -> None:
    assert constraints["iree-base-compiler"] == constraints["iree-base-runtime"]


def test_constraints_name_no_local_version_and_no_range(constraints: dict[str, str]) -> None:
    loose = {
        name: pin for name, pin in constraints.items() if not pin or re.search(r"[+*<>@ ]", pin)
    }
    assert loose == {}


def test_every_dependency_is_pinned_inside_its_declared_range(
    pyproject: dict[str, Any], constraints: dict[str, str]
) -> None:
    extras = pyproject["project"]["optional-dependencies"].values()
    for text in (*pyproject["project"]["dependencies"], *(text for e in extras for text in e)):
        requirement = Requirement(text)
        pin = constraints[normalized(requirement.name)]
        assert requirement.specifier.contains(pin), f"{text}, pinned {pin}"


def test_the_compiler_stack_is_declared_as_one_release_line(pyproject: dict[str, Any]) -> None:
    declared = {
        normalized(r.name): r for r in map(Requirement, pyproject["project"]["dependencies"])
    }
    for name in COMPILER_STACK:
        assert [clause.operator for clause in declared[name].specifier] == ["=="], name


def test_results_are_not_ignored_by_git(project_root: Path) -> None:
    lines = (project_root / ".gitignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip("/") for line in lines if line and not line.startswith("#")]
    committed = ("results", "results/v1/m/r/x.json", "results/tables/slim/table1.md", "table1.csv")
    for path in committed:
        assert not any(fnmatch(path, pattern) for pattern in patterns), path
