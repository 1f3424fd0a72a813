"""Keys of stages: they move with the code that fills the stage, and with nothing else."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from trinity.harness.accuracy import measured
from trinity.harness.accuracy.kinds.tasks import TasksSuite
from trinity.harness.bench.bench import Bench
from trinity.harness.checkpoints.dequantized import Dequantized
from trinity.harness.compress import calibration, imported, tune
from trinity.harness.compress.block_tuning import BlockTuning
from trinity.harness.compress.walk import Walk
from trinity.harness.modules import module_stages
from trinity.harness.runs import recording
from trinity.harness.store import own_code
from trinity.harness.training import pretrain
from trinity.methods import plugins, registry
from trinity.methods.declarations import Registered

ENTRIES: dict[str, tuple[object, ...]] = {
    "block": (Walk,),
    "tuned": (tune,),
    "tuned-block": (BlockTuning,),
    "calibration": (calibration,),
    "imported": (imported,),
    "trained": (pretrain,),
    "module": (module_stages,),
    "suite": (measured, Dequantized, TasksSuite),
    "record": (recording,),
    "bench": (Bench,),
}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trinity's code, to be edited; it is read again for each hash."""
    packages = {}
    for name in own_code.PACKAGES:
        (folder,) = own_code.own_tree().packages[name]
        packages[name] = [tmp_path / name.rpartition(".")[2]]
        shutil.copytree(folder, *packages[name], ignore=shutil.ignore_patterns("__pycache__"))
    tree = lambda: own_code.SourceTree(packages, own_code.DATA)  # noqa: E731
    monkeypatch.setattr(own_code, "own_tree", tree)
    return tmp_path


def _changes(edited: Path, text: str, key: Callable[[], str]) -> bool:
    """Whether adding a line to a file moves a key."""
    before, content = key(), edited.read_bytes()
    edited.write_bytes(content + text.encode())
    try:
        return key() != before
    finally:
        edited.write_bytes(content)


@pytest.mark.parametrize(
    ("stage", "inside", "outside"),
    [
        ("block", "harness/compress/activations.py", "harness/bench/bench.py"),
        ("block", "methods/formats/packing.py", "methods/gptq.py"),
        ("tuned", "harness/checkpoints/block.py", "harness/compress/walk.py"),
        ("tuned-block", "harness/compress/entering.py", "harness/compress/walk.py"),
        ("calibration", "harness/texts/corpora.py", "harness/compress/walk.py"),
        ("imported", "harness/checkpoints/checkpoint.py", "harness/bench/bench.py"),
        ("trained", "methods/training/slope.py", "harness/compress/walk.py"),
        ("module", "lowering/kernels/cpu/panels.py", "harness/compress/walk.py"),
        ("module", "harness/modules/narrow_head.py", "methods/wanda.py"),
        ("suite", "harness/accuracy/tasks.py", "harness/runs/run.py"),
        ("suite", "harness/statistics/intervals.py", "harness/bench/bench.py"),
        ("suite", "harness/checkpoints/checkpoint.py", "harness/compress/walk.py"),
        ("suite", "harness/engines/engine.py", "lowering/lower.py"),
        ("record", "harness/records/environment.py", "harness/compress/walk.py"),
        ("bench", "harness/bench/layers.py", "harness/compress/walk.py"),
        ("bench", "harness/statistics/comparison.py", "harness/accuracy/suites.py"),
    ],
)
def test_a_key_moves_with_the_code_that_fills_the_stage_alone(
    stage: str, inside: str, outside: str, copy: Path
) -> None:
    key = lambda: own_code.sha256(*ENTRIES[stage])  # noqa: E731
    assert _changes(copy / inside, "\nNEW = 1\n", key)
    assert not _changes(copy / outside, "\nNEW = 1\n", key)
    assert not _changes(copy / inside, '\n# a comment\n"""A text that stands alone."""\n', key)


def test_docstrings_and_layout_do_not_count(copy: Path) -> None:
    path = copy / "harness" / "compress" / "walk.py"
    before = own_code.sha256(Walk)
    text = path.read_text(encoding="utf-8")
    edited = text.replace('"""Walk', '"""What').replace("\n    def", "\n\n\n    def")
    assert edited != text
    path.write_text(edited, encoding="utf-8")
    assert own_code.sha256(Walk) == before


def test_a_fix_in_one_method_leaves_the_blocks_of_the_others(copy: Path) -> None:
    def key(name: str) -> Callable[[], str]:
        return lambda: own_code.sha256(Walk, methods=[registry.get(name)])

    assert _changes(copy / "methods" / "gptq.py", "\nNEW = 1\n", key("gptq"))
    assert not _changes(copy / "methods" / "gptq.py", "\nNEW = 1\n", key("wanda"))
    # A composite is made of others, and shared steps are everyone's.
    assert _changes(copy / "methods" / "wanda.py", "\nNEW = 1\n", key("slim"))
    assert _changes(copy / "methods" / "tensors.py", "\nNEW = 1\n", key("wanda"))


def test_kernels_that_are_read_as_data_count(copy: Path) -> None:
    kernel = copy / "lowering" / "kernels" / "cuda" / "product_f32_1.ptx"
    assert _changes(kernel, "\n", lambda: own_code.sha256(module_stages.lower))
    assert not _changes(kernel, "\n", lambda: own_code.sha256(Walk))


def test_every_form_of_import_is_followed(tmp_path: Path) -> None:
    """Two packages, whose modules import each other in every way; `stray` is for types alone."""
    files = {
        "one/__init__.py": "from . import begin",
        "one/begin.py": "",
        "one/start.py": (
            "from typing import TYPE_CHECKING\n"
            "import two.plain, two\n"
            "from two.deep import inner\n"
            "from two.objects import thing as other\n"
            "def f():\n    from .beside import g\n    from ..one import late\n"
            "    import importlib; importlib.import_module('two.called')\n"
            "if TYPE_CHECKING:\n    from two import stray\nelse:\n    from two import fallback\n"
            "if not TYPE_CHECKING:\n    from two import at_run\n"
            "importlib.import_module('.dotted', __package__)\n"
            "importlib.import_module(name='two.keyword')\n"
            "importlib.import_module('..far', package='two.deep')\n"
            "importlib.import_module('...beyond', 'two')\n"
        ),
        **dict.fromkeys(("one/beside.py", "one/late.py", "one/unused.py"), ""),
        **dict.fromkeys(("two/__init__.py", "two/plain.py", "two/deep/__init__.py"), ""),
        **dict.fromkeys(("two/deep/inner.py", "two/objects.py", "two/called.py"), ""),
        **dict.fromkeys(("two/stray.py", "two/fallback.py", "two/at_run.py"), ""),
        **dict.fromkeys(("one/dotted.py", "two/keyword.py", "two/far.py"), ""),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    tree = own_code.SourceTree({name: [tmp_path / name] for name in ("one", "two")}, {})
    assert tree.closure(frozenset({"one.start"})) == {
        *("one", "one.begin", "one.start", "one.beside", "one.late", "two", "two.plain"),
        *("two.deep", "two.deep.inner", "two.objects", "two.called", "two.fallback"),
        *("two.at_run", "one.dotted", "two.keyword", "two.far"),
    }


@pytest.mark.parametrize("stage", ENTRIES)
def test_no_stage_imports_a_module_by_a_name_made_at_run_time(stage: str) -> None:
    """Such an import is not followed.  Plugins are imported so, and followed as methods."""
    tree = own_code.own_tree()
    for module in tree.closure(frozenset(map(own_code.module_of, ENTRIES[stage]))):
        path = tree._path(module)
        assert path
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                assert isinstance(node.args[0], ast.Constant), path


PLUGIN = {
    "mine/__init__.py": "",
    "mine/method.py": (
        "from mine.helper import f\n"
        "from trinity.methods.dense import DENSE\n"
        "class Method(type(DENSE)): name = 'mine'\n"
        "METHOD = Method()\n"
    ),
    "mine/helper.py": "from . import deeper\ndef f(): ...\n",
    "mine/deeper.py": "",
    "mine/unused.py": "",
    "mine/table.bin": "1",
    "mine/table.yaml": "a: 1",
    "another/__init__.py": "",
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Registered]:
    """A plugin's folder and its method."""
    for name, text in PLUGIN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint("mine", "mine.method:METHOD", registry.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda group: [entry])
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path, registry.get("mine")


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("mine/method.py", True),
        ("mine/helper.py", True),
        ("mine/deeper.py", True),
        ("mine/__init__.py", True),
        ("mine/table.bin", True),
        ("mine/unused.py", False),
        ("mine/table.yaml", True),
        ("another/__init__.py", False),
    ],
)
def test_of_a_plugin_all_counts_that_its_method_needs(
    file: str, counts: bool, plugin: tuple[Path, Registered]
) -> None:
    folder, method = plugin

    def key() -> str:
        own_code._plugin_tree.cache_clear()
        return own_code.sha256(Walk, methods=[method])

    assert _changes(folder / file, "\nNEW = 1\n", key) == counts


def test_data_of_a_package_without_code_of_its_own_counts(
    plugin: tuple[Path, Registered],
) -> None:
    folder, method = plugin
    (folder / "mine" / "__init__.py").unlink()

    def key() -> str:
        own_code._plugin_tree.cache_clear()
        return own_code.sha256(Walk, methods=[method])

    assert _changes(folder / "mine" / "table.bin", "2", key)


@pytest.mark.parametrize(("file", "counts"), [("alone_table.bin", True), ("other.bin", False)])
def test_of_a_module_alone_its_neighbours_do_not_count(
    file: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lie in site-packages, beside everything that is installed."""
    text = PLUGIN["mine/method.py"].replace("from mine.helper import f\n", "")
    (tmp_path / "alone.py").write_text(text, encoding="utf-8")
    (tmp_path / file).write_text("1", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "alone", raising=False)
    entry = EntryPoint("mine", "alone:METHOD", registry.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda group: [entry])
    method = registry.get("mine")

    def key() -> str:
        own_code._plugin_tree.cache_clear()
        return own_code.sha256(Walk, methods=[method])

    assert _changes(tmp_path / file, "2", key) == counts


def test_the_version_of_what_a_plugin_imports_counts(
    plugin: tuple[Path, Registered], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, method = plugin
    (folder / "mine" / "helper.py").write_text("def f():\n    import yaml\n", encoding="utf-8")
    found = []
    for number in ("6.0", "6.1"):
        monkeypatch.setattr(own_code, "version", lambda _, number=number: number)
        found.append(own_code.sha256(Walk, methods=[method]))
    assert found[0] != found[1]


def test_what_a_plugin_imports_of_trinity_counts(
    plugin: tuple[Path, Registered], copy: Path
) -> None:
    key = lambda: own_code.sha256(Walk, methods=[plugin[1]])  # noqa: E731
    assert _changes(copy / "methods" / "dense.py", "\nNEW = 1\n", key)
    assert not _changes(copy / "methods" / "wanda.py", "\nNEW = 1\n", key)


def test_a_file_that_is_no_python_is_hashed_as_it_is(plugin: tuple[Path, Registered]) -> None:
    folder, method = plugin

    def key() -> str:
        own_code._plugin_tree.cache_clear()
        return own_code.sha256(methods=[method])

    (folder / "mine" / "helper.py").write_text("def f(:", encoding="utf-8")
    assert _changes(folder / "mine" / "helper.py", "\n# x\n", key)


def test_hashes_are_the_same_in_every_process() -> None:
    """Python orders sets differently in every process."""
    program = "from trinity.harness.store import own_code; print(own_code.sha256(own_code))"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(3)
    }
    assert len(found) == 1
