"""A separate package adds methods: built, installed and used as a third party's would be."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

USE = """
import json
import torch
from trinity.harness.models import families
from trinity.methods import registry
from trinity.methods.conformance import check
from trinity.methods.contract import BlockTask, LayerStats
from trinity.methods.errors import ConfigError
from trinity.methods.formats import Dense

torch.set_num_threads(1)
torch.manual_seed(0)
W, X = torch.randn(8, 16), torch.randn(64, 16) @ torch.randn(16, 16)
stats = LayerStats(H=2 / 64 * X.T @ X)

def loss(weight):
    return float((X @ (weight.dequantize() - W).T).square().sum())

def refused(call):
    try:
        call()
    except ConfigError as error:
        return str(error)

random_nm, rescale, source = map(registry.get, ("random-nm", "row-rescale", "nm-checkpoint"))
options = registry.configure("random-nm", {"pattern": "1:4", "seed": 3})
pruned = random_nm.compress(W, Dense(W), LayerStats(), options)
other = registry.configure("random-nm", {"pattern": "1:4", "seed": 4})
task = BlockTask({"a": W}, {"a": pruned}, {"a": stats}, (), lambda weights, x: x)
rescaled = rescale.compress_block(task, registry.configure("row-rescale", {}))["a"]
pattern = registry.configure("nm-checkpoint", {"pattern": "1:4"})
loaded = source.load({"fc.weight": pruned.dequantize(), "norm.weight": W[0]}, pattern)
print(json.dumps({
    "names": registry.names(),
    "owners": {name: registry.owner(name) for name in registry.names()},
    "family": families.get("starcoder2").blocks,
    "kept": [int(v) for v in pruned.mask.view(8, 4, 4).sum(-1).unique()],
    "same_seed": torch.equal(
        pruned.mask, random_nm.compress(W, Dense(W), LayerStats(), options).mask
    ),
    "other_seed": torch.equal(
        pruned.mask, random_nm.compress(W, Dense(W), LayerStats(), other).mask
    ),
    "loss": [loss(pruned), loss(rescaled)],
    "rescaled_mask": torch.equal(rescaled.mask, pruned.mask),
    "loaded": list(loaded),
    "loaded_equal": torch.equal(loaded["fc"].dequantize(), pruned.dequantize()),
    "not_sparse": refused(lambda: source.load({"fc.weight": W}, pattern)),
    "unknown_option": refused(lambda: registry.configure("random-nm", {"sed": 1})),
    "violations": {
        name: check(registry.get(name))
        for name in ("random-nm", "row-rescale", "nm-checkpoint")
    },
}))
"""

NAMES = """
from trinity.methods import registry
try:
    assert 'wanda' in registry.names()
    print(registry.get('random-nm'))
except Exception as error:
    print(type(error).__name__, error)
"""


def install(package: Path, target: Path) -> Path:
    """Build and install a package with pip, without the network, into a folder of its own."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-build-isolation", "--no-deps", "--no-index", "--target", str(target)]
    done = subprocess.run([*command, str(package)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def python(program: str, *folders: Path) -> str:
    """Standard output of a Python program that finds these folders, and ours, on its path."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*map(str, folders), *([inherited] if inherited else [])])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plugin")


@pytest.fixture(scope="module")
def source(folder: Path, project_root: Path) -> Path:
    """A copy of the example package: building it leaves files beside its sources."""
    package = project_root / "tests" / "plugin_package"
    return Path(shutil.copytree(package, folder / "source"))


@pytest.fixture(scope="module")
def installed(folder: Path, source: Path) -> Path:
    return install(source, folder / "site")


@pytest.fixture(scope="module")
def used(installed: Path) -> dict[str, Any]:
    """What a program that uses the installed package saw."""
    found: dict[str, Any] = json.loads(python(USE, installed))
    return found


def test_an_installed_package_is_listed_beside_the_built_in_methods(used: dict[str, Any]) -> None:
    assert {"random-nm", "row-rescale", "nm-checkpoint", "wanda"} <= set(used["names"])


def test_the_owner_of_a_method_is_the_distribution_that_registers_it(used: dict[str, Any]) -> None:
    assert used["owners"]["random-nm"] == "trinity-example-plugin"
    assert used["owners"]["wanda"] == "trinity"


def test_a_family_of_another_package_is_known(used: dict[str, Any]) -> None:
    assert used["family"] == "model.layers"


def test_a_method_of_another_package_compresses(used: dict[str, Any]) -> None:
    assert used["kept"] == [1]
    assert used["same_seed"] is True
    assert used["other_seed"] is False


def test_a_block_method_of_another_package_lowers_the_output_error(used: dict[str, Any]) -> None:
    pruned, rescaled = used["loss"]
    assert rescaled < pruned
    assert used["rescaled_mask"] is True


def test_a_checkpoint_source_of_another_package_reads_weights(used: dict[str, Any]) -> None:
    assert used["loaded"] == ["fc"]
    assert used["loaded_equal"] is True
    assert "fc: 96 weights are not zero that 1:4 would remove" in used["not_sparse"]


def test_options_of_another_package_are_checked_like_our_own(used: dict[str, Any]) -> None:
    assert "no option sed. Did you mean seed?" in used["unknown_option"]


def test_the_example_package_conforms(used: dict[str, Any]) -> None:
    assert used["violations"] == {"random-nm": [], "row-rescale": [], "nm-checkpoint": []}


def test_two_installed_packages_with_one_name_raise_and_both_are_named(
    folder: Path, source: Path, installed: Path
) -> None:
    rival = Path(shutil.copytree(source, folder / "rival"))
    (rival / "src" / "trinity_example_plugin").rename(rival / "src" / "trinity_rival")
    for path in [rival / "pyproject.toml", *rival.glob("src/trinity_rival/*.py")]:
        text = path.read_text(encoding="utf-8")
        text = text.replace("trinity-example-plugin", "trinity-rival")
        path.write_text(text.replace("trinity_example_plugin", "trinity_rival"), encoding="utf-8")
    for leftover in (*rival.glob("src/*.egg-info"), *rival.glob("build")):
        shutil.rmtree(leftover)
    message = python(NAMES, installed, install(rival, folder / "rival-site"))
    assert message.startswith("ConfigError")
    assert "is registered twice" in message
    assert "trinity-example-plugin" in message
    assert "trinity-rival" in message
