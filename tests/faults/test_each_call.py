"""A process that ends, or is refused, at any one of the calls that change files: what is seen then
is whole, and doing it again ends as if nothing had been.
"""

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import layer
from trinity.harness.store import stages, writing
from trinity.harness.store.stages import StageStore
from trinity.methods.errors import MachineError


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Damaged stages are said hundreds of times here."""
    caplog.set_level(logging.ERROR)


def _text(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "file").write_text(text)
        stages.write_json(folder / "data.json", {"text": text})

    return write


def work(place: Path) -> None:
    """Everything that is written in one step: stages, one of them over another; records, folders.

    What is there already and whole stays.
    """
    store = StageStore(place / "store")
    store.fill("kind", {"n": 1}, _text("first"))
    store.fill("damaged", {"n": 2}, _text("mended"))
    results = place / "results"
    with writing.writing(results):
        results.mkdir(exist_ok=True)
    writing.write_new(results / "record.json", "a record")
    stages.write_json(results / "attempt.json", {"status": "finished"})
    if not (place / "new").exists():
        writing.make_folder(place / "new", _text("new"))


def prepare(place: Path) -> None:
    """A store with a damaged stage."""
    damaged = StageStore(place / "store").fill("damaged", {"n": 2}, _text("before"))
    (damaged / "data.json").write_text("{}")


def seen(place: Path) -> dict[str, str]:
    """Text of every file under its name but for the store's own bookkeeping."""
    hidden = ("locks", "scratch", "here", "replaced", "gate", ".trinity-")
    names = {str(path.relative_to(place)): path for path in place.rglob("*") if path.is_file()}
    shown = {n: p for n, p in names.items() if not any(word in n for word in hidden)}
    return {name: path.read_text() for name, path in shown.items()}


def _check_whole(place: Path, before: dict[str, str], after: dict[str, str]) -> None:
    """Every file is as it was or as it is to be, and every stage that is there is whole."""
    for name, text in seen(place).items():
        assert text in (before.get(name), after[name]), name
    found = StageStore(place / "store")
    for kind, number, text in (("kind", 1, "first"), ("damaged", 2, "mended")):
        stage = found.get(kind, {"n": number})
        assert stage is None or (stage / "sub" / "file").read_text() == text
    if (place / "new").exists():
        assert (place / "new" / "sub" / "file").read_text() == "new"


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, str]]:
    """How many calls the work makes, and what it leaves."""
    place = tmp_path_factory.mktemp("whole")
    prepare(place)
    with layer.Layer(-1, layer.kill).here() as counting:
        work(place)
    return counting.calls, seen(place)


def test_killed_at_any_call_nothing_half_written_is_seen(
    tmp_path: Path, calls: tuple[int, dict[str, str]]
) -> None:
    assert calls[0] > 100
    for number in range(calls[0]):
        place = tmp_path / str(number)
        place.mkdir()
        prepare(place)
        before = seen(place)
        child = os.fork()
        if child == 0:
            with layer.Layer(number, layer.kill).here():
                work(place)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, number
        _check_whole(place, before, calls[1])
        work(place)
        StageStore(place / "store")
        assert seen(place) == calls[1]
        _check_tidy(place, number)


def test_refused_at_any_call_the_error_is_one_paragraph_and_nothing_is_lost(
    tmp_path: Path, calls: tuple[int, dict[str, str]]
) -> None:
    refused: list[type[Exception]] = []
    for number in range(calls[0]):
        happens = layer.full if number % 2 else layer.denied
        place = tmp_path / str(number)
        place.mkdir()
        prepare(place)
        before = seen(place)
        with layer.Layer(number, happens).here():
            try:
                work(place)
            except (MachineError, PermissionError) as error:
                refused.append(type(error))  # not the error, which holds the store
        _check_whole(place, before, calls[1])
        work(place)
        assert seen(place) == calls[1]
        _check_tidy(place, number)
    assert len(refused) > calls[0] / 3
    assert refused.count(MachineError) > len(refused) / 2


def _check_tidy(place: Path, number: int) -> None:
    # Whoever writes next to it sweeps what a killed one left.
    writing.write_text(place / "next", "")
    assert list(place.rglob(".trinity-*")) == [], number
    for name in ("locks", "scratch", "replaced"):
        folder = place / "store" / name
        assert not folder.exists() or list(folder.iterdir()) == [], number
