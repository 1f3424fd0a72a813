"""A text that several tests compile by one command is compiled once in a run, whichever worker asks
first: a compiler that is given the same gives the same.
"""

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.made_once import made_once
from trinity.lowering.module.compile import SOURCE

Run = Callable[[Sequence[str], Path], subprocess.CompletedProcess[str]]


class _RefusedError(Exception):
    """The compiler made no module."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.done = done


def remembered(run: Run, factory: pytest.TempPathFactory) -> Run:
    """In place of `run`, the compiler's process in a folder with a text: its module if it made one
    before, in any worker.  What it refuses, it is asked again.
    """

    def instead(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        content = "\0".join(command).encode() + b"\0\0" + (folder / SOURCE).read_bytes()
        module = folder / command[command.index("-o") + 1]

        def make(place: Path) -> None:
            done = run(command, folder)
            if done.returncode:
                raise _RefusedError(done)
            shutil.copyfile(module, place / "module")

        try:
            name = f"compiled-{hashlib.sha256(content).hexdigest()}"
            shutil.copyfile(made_once(factory, name, make) / "module", module)
        except _RefusedError as refused:
            return refused.done
        return subprocess.CompletedProcess(command, 0, "", "")

    return instead
