"""The compiler as a program, on whatever machine and in whatever folder it lies."""

import tempfile
from pathlib import Path

import pytest

from trinity.lowering.module import compile as compiling
from trinity.lowering.targets import targets
from trinity.methods.errors import LoweringError, MachineError

SUM = """
func.func @twice(%x: tensor<4xf32>) -> tensor<4xf32> {
  %y = arith.addf %x, %x : tensor<4xf32>
  return %y : tensor<4xf32>
}
"""


def test_it_compiles_and_links_in_folders_with_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("the user's venv", "a place for files"):
        (tmp_path / folder).mkdir()
    for name in ("iree-compile", "iree-lld"):
        (tmp_path / "the user's venv" / name).symlink_to(compiling.tool(name))
    monkeypatch.setattr(compiling, "tool", lambda name: str(tmp_path / "the user's venv" / name))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "a place for files"))
    assert compiling.compile_text(SUM, targets.get("llvm-cpu"))
    assert not list((tmp_path / "a place for files").iterdir())


def test_temporary_files_that_cannot_be_written_are_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(MachineError, match="TMPDIR"):
        compiling.compile_text(SUM, targets.get("llvm-cpu"))


def test_a_compiler_that_is_not_there_is_not_called_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "tool", lambda name: str(tmp_path / name))
    with pytest.raises(MachineError, match="iree-compile cannot be started") as refused:
        compiling.compile_text(SUM, targets.get("llvm-cpu"))
    assert "TMPDIR" not in str(refused.value)


def test_a_module_is_the_same_whether_the_compiler_checks_its_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unchecked = compiling.compile_text(SUM, targets.get("llvm-cpu"))
    monkeypatch.setattr(compiling, "UNCHECKED", "--verify=true")
    assert compiling.compile_text(SUM, targets.get("llvm-cpu")) == unchecked


def test_text_that_is_wrong_is_refused_though_passes_are_not_checked() -> None:
    wrong = SUM.replace("return %y : tensor<4xf32>", "return %y : tensor<5xf32>")
    with pytest.raises(LoweringError, match="refused the module"):
        compiling.compile_text(wrong, targets.get("llvm-cpu"))
