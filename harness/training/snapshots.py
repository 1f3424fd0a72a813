"""Snapshots of an unfinished training: all that the next step depends on, in one file.

A file is replaced in one step, so a process that is killed at any moment leaves the last whole one.
"""

import os
from pathlib import Path
from typing import Any

import torch

from trinity.harness.models import torch_files
from trinity.harness.store.writing import writing
from trinity.methods.errors import ConfigError

FILE, UNFINISHED = "snapshot.pt", "snapshot.pt.unfinished"


class Snapshots:
    """The last snapshot of one training, in a folder of its own."""

    def __init__(self, folder: Path, asked: str, every: int) -> None:
        """folder: made when the first is kept   asked: hash of all that the training depends on

        every: steps between two
        """
        self.folder, self.asked, self.every = folder, asked, every

    def last(self) -> dict[str, Any] | None:
        """What was kept last, on the CPU; ConfigError if it is of another training."""
        path = self.folder / FILE
        if not path.is_file():
            return None
        kept = torch_files.read(path, "Remove it to begin anew.")
        if not isinstance(kept, dict) or kept.get("asked") != self.asked:
            msg = (
                f"{path}: is of another training: its model, text or options differ from those "
                f"asked for. Ask for the same to go on, name another --out, or remove the folder."
            )
            raise ConfigError(msg)
        state: dict[str, Any] = kept["state"]
        return state

    def keep(self, state: dict[str, Any]) -> None:
        """Replace the last one.  state: tensors, numbers, texts, and lists and dicts of them"""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            beside = self.folder / UNFINISHED
            with beside.open("wb") as stream:
                torch.save({"asked": self.asked, "state": state}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(self.folder / FILE)


def forget(folder: Path) -> None:
    """Remove what was kept, and the folder if nothing else is in it."""
    for name in (FILE, UNFINISHED):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
