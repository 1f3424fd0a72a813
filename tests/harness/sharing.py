"""What other processes do in the tests of the store: started by `spawn`, so they share nothing."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from trinity.harness.store.stages import StageStore

FILES = 5


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[BaseProcess]:
    """Another process, killed at the end if it still runs."""
    started = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    started.start()
    try:
        yield started
    finally:
        started.kill()
        started.join()


def happens(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "does not happen"
        time.sleep(0.005)


def appears(path: Path) -> None:
    """Wait until a file is there."""
    happens(path.exists)


def fetch_all(root: Path, notes: Path, name: str, count: int) -> None:
    """Fetch stages that another process fetches too, read them, and note who wrote which."""
    store = StageStore(root)
    (notes / f"{name}-ready").touch()
    appears(notes / "go")
    for number in range(count):

        def write(folder: Path, number: int = number) -> None:
            with (notes / f"written-{number}").open("a", encoding="utf-8") as stream:
                stream.write(f"{name}\n")
            for index in range(FILES):
                (folder / f"{index}.bin").write_bytes(b"x" * 10_000)

        place = store.fill("block", {"n": number}, write)
        read = [(place / f"{index}.bin").read_bytes() for index in range(FILES)]
        assert read == [b"x" * 10_000] * FILES
    (notes / f"{name}-done").touch()


def fetch_slowly(root: Path, notes: Path) -> None:
    """Make one stage, and stay in the middle until `go` appears."""

    def write(folder: Path) -> None:
        (folder / "file").write_text("from the other process", encoding="utf-8")
        (notes / "started").touch()
        appears(notes / "go")

    StageStore(root).fill("kind", {}, write)


def read_and_stay(root: Path, notes: Path) -> None:
    """Get a stage that is there, and use the store until `go` appears."""
    store = StageStore(root)
    assert store.get("kind", {}) is not None
    (notes / "started").touch()
    appears(notes / "go")
