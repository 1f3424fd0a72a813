import subprocess
from pathlib import Path

import pytest

from trinity.harness.store import sums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_text(name)
    sums.write(tmp_path)
    return tmp_path


def test_a_whole_folder_is_whole_for_us_and_for_sha256sum(folder: Path) -> None:
    assert sums.damage(folder) is None
    done = subprocess.run(
        ["sha256sum", "-c", sums.SUMS], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["a: OK", "sub/b: OK"]


def test_a_folder_without_sums_and_a_file_without_one_are_the_users(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    assert sums.damage(folder) is None
    (folder / sums.SUMS).unlink()
    (folder / "a").write_text("changed")
    assert sums.damage(folder) is None


@pytest.mark.parametrize("name", ["a", "sub/b"])
def test_what_changed_or_is_gone_is_named_though_it_was_whole_before(
    folder: Path, name: str
) -> None:
    assert sums.damage(folder) is None
    (folder / name).write_text("other")
    assert sums.damage(folder) == f"{name} has another hash than SHA256SUMS says"
    (folder / name).unlink()
    assert sums.damage(folder) == f"{name} cannot be read (No such file or directory)"


@pytest.mark.parametrize("line", ["0  /etc/passwd", "0  ../other", "no sum", "0  "])
def test_sums_that_lead_out_of_the_folder_or_are_none_are_damage(folder: Path, line: str) -> None:
    (folder / sums.SUMS).write_text(line + "\n")
    assert "SHA256SUMS is damaged" in str(sums.damage(folder))
