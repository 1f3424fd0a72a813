"""tests/made_once.py: one maker of several, and nothing of one that failed."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.made_once import made_once


class Factory(pytest.TempPathFactory):
    """One whose base folder is given."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def getbasetemp(self) -> Path:
        return self.base


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Factory:
    """Of a worker."""
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    own = tmp_path / "popen-gw0"
    own.mkdir()
    return Factory(own)


def _make(folder: Path) -> None:
    (folder / "made").mkdir()  # raises where it is already
    with (folder.parent / "calls").open("a") as calls:
        calls.write("x")


def test_workers_that_ask_at_once_get_the_same_folder_made_by_one(
    factory: Factory, tmp_path: Path
) -> None:
    together = threading.Barrier(5)

    def ask(number: int) -> Path:
        together.wait()
        return made_once(factory, "a", _make)

    with ThreadPoolExecutor(5) as workers:
        assert set(workers.map(ask, range(5))) == {tmp_path / "a"}
    assert (tmp_path / "a" / "made").is_dir()
    assert (tmp_path / "calls").read_text() == "x"


def test_what_a_maker_that_failed_left_is_made_afresh(factory: Factory) -> None:
    def fail(folder: Path) -> None:
        (folder / "made").mkdir()
        raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        made_once(factory, "a", fail)
    assert (made_once(factory, "a", _make) / "made").is_dir()
