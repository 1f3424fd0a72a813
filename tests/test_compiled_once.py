"""tests/compiled_once.py: a module is that of its text and command, and a refusal is not kept."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.compiled_once import remembered
from trinity.lowering.module.compile import SOURCE


class Compiler:
    """Makes a module that says what it was given and how often it was asked."""

    def __init__(self, code: int = 0) -> None:
        self.calls, self.code = 0, code

    def __call__(self, command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        if not self.code:
            text = (folder / SOURCE).read_text()
            (folder / command[-1]).write_text(f"{text} by {' '.join(command)}, {self.calls}")
        return subprocess.CompletedProcess(command, self.code, "", f"complaint {self.calls}")


def test_another_text_or_flag_is_compiled_and_the_same_is_not(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compiler, mark = Compiler(), tmp_path.name  # of this test alone
    compile_ = remembered(compiler, tmp_path_factory)
    found = []
    for text, flag in (("a", "x"), ("b", "x"), ("a", "y"), ("a", "x")):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        (folder / SOURCE).write_text(text)
        done = compile_(["compiler", f"{flag}-{mark}", "-o", "module"], folder)
        assert done.returncode == 0
        found.append((folder / "module").read_text())
    assert [one.partition(" by ")[0] for one in found] == ["a", "b", "a", "a"]
    assert found[3] == found[0]
    assert len(set(found)) == compiler.calls == 3


def test_what_is_refused_is_asked_again_with_its_complaint(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compile_ = remembered(Compiler(code=1), tmp_path_factory)
    (tmp_path / SOURCE).write_text("wrong")
    command = ["compiler", tmp_path.name, "-o", "module"]
    assert [compile_(command, tmp_path).stderr for _ in range(2)] == ["complaint 1", "complaint 2"]
    assert not (tmp_path / "module").exists()
