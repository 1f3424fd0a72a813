import os
import subprocess
import sys
from pathlib import Path

import pytest

from trinity.harness import code
from trinity.methods import registry


def test_hashes_are_the_same_in_every_process() -> None:
    """Python orders sets of paths differently in every process."""
    program = (
        "from trinity.harness import code\n"
        "print(code.code_sha256('accuracy', 'walk.py'), code.methods_sha256([]))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(found) == 1


def test_a_plugins_own_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plugin_method.py"
    path.write_text("class Method: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import plugin_method  # type: ignore[import-not-found]  # written above

    before = code.methods_sha256([plugin_method.Method()])
    assert before != code.methods_sha256([registry.get("dense")])
    path.write_text("class Method: x = 1\n")
    assert code.methods_sha256([plugin_method.Method()]) != before


def test_a_change_of_any_named_file_changes_the_hash() -> None:
    assert code.code_sha256("walk.py") != code.code_sha256("plan.py")
    assert code.code_sha256("accuracy") != code.code_sha256("latency")
