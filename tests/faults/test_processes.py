"""Processes of these tests are forked from one that could load what they need."""

import os
from pathlib import Path

import pytest

from tests.faults import processes


def test_the_process_that_others_are_forked_from_starts_where_it_finds_the_tests(
    tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere it loads nothing, which Python 3.11 does not say: five seconds for each process."""
    seen = []
    monkeypatch.setattr(processes.forkserver, "ensure_running", lambda: seen.append(Path.cwd()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    processes.context()
    assert seen == [project_root]
    assert os.getcwd() == str(tmp_path)
