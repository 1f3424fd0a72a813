import json
import sys
from pathlib import Path

import pytest

from tests.harness.audit import written
from tests.harness.audit.written import FIRST
from trinity.harness import cli


def _audit(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["trinity", "audit", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_clean_checkpoint_ends_with_0_and_says_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written.folder("gptq").save(tmp_path / "a model")
    assert _audit(monkeypatch, str(folder)) == 0
    said = capsys.readouterr().out
    assert "gptq, its configuration says 4 bits, group 32" in said
    assert "no fault found" in said


def test_a_fault_ends_with_1_and_is_in_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = written.folder("gptq")
    made.tensors[f"{FIRST}.scales"] = made.tensors[f"{FIRST}.scales"] * 0
    assert _audit(monkeypatch, str(made.save(tmp_path / "model")), "--json") == 1
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert fault == {"layer": FIRST, "what": "64 of 64 scales are zero"}


@pytest.mark.parametrize("name", ["absent", "text.txt", "empty", "damaged.gguf"])
def test_what_cannot_be_read_ends_with_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("words", encoding="utf-8")
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF and nothing else")
    (tmp_path / "empty").mkdir()
    assert _audit(monkeypatch, str(tmp_path / name)) == 2
    assert str(tmp_path) in capsys.readouterr().err
