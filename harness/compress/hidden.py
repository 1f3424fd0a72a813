"""The hidden states between two blocks, of all calibration sequences: in memory, or in a file."""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from trinity.harness.records import available
from trinity.harness.store.writing import writing

# Of the memory that is free when the walk begins: blocks and statistics want the rest.
SHARE_IN_MEMORY = 0.25


class Hidden:
    """[1, seq, width] of every sequence, read and replaced one at a time.

    More than a quarter of the free memory lies in a file that has no name: the system writes and
    reads its pages as memory allows, and a killed run leaves nothing.
    """

    def __init__(self, count: int, first: Tensor, folder: Path) -> None:
        """count: of sequences   first: the first of them, on its device   folder: for the file"""
        self.device, self.nbytes = first.device, count * first.nbytes
        self.in_file = in_file(self.nbytes, first.device)
        # A tensor a sequence, not parts of one: whoever changes one that it may only read is told.
        self._states = (
            mapped(count, first, folder)
            if self.in_file
            else [torch.empty_like(first) for _ in range(count)]
        )

    def __len__(self) -> int:
        """Sequences."""
        return len(self._states)

    def __getitem__(self, index: int) -> Tensor:
        """[1, seq, width] on its device."""
        return self._states[index].to(self.device)

    def __setitem__(self, index: int, state: Tensor) -> None:
        """Replace one."""
        self._states[index].copy_(state)

    def __iter__(self) -> Iterator[Tensor]:
        """All of them in turn."""
        return (self[index] for index in range(len(self)))

    def replace(self, run: Callable[[Tensor], Tensor]) -> None:
        """Hand every sequence on: what comes out of a block takes the place of what went in."""
        for index in range(len(self)):
            self[index] = run(self[index])


def in_file(nbytes: int, device: torch.device) -> bool:
    """Whether hidden states of so many bytes are too large for the memory where torch computes."""
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else available.available_bytes()
    return nbytes > SHARE_IN_MEMORY * free


def mapped(count: int, like: Tensor, folder: Path) -> list[Tensor]:
    """Tensors like one, whose pages are those of a file without a name; MachineError if it has no
    room.
    """
    size = count * like.nbytes
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        # Taken now: a page that finds no room later kills the process without a word.
        os.posix_fallocate(file.fileno(), 0, size)
        pages = mmap.mmap(file.fileno(), size)
    made = [
        torch.frombuffer(pages, dtype=like.dtype, count=like.numel(), offset=index * like.nbytes)
        for index in range(count)
    ]
    return [tensor.view(like.shape) for tensor in made]
