"""Short trainings of small models, in one process or in two."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.harness import families
from tests.harness.tiny import ByteTokenizer
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.terminal.progress import Reporter
from trinity.harness.training import pretrain
from trinity.harness.training.workers import Workers, alone, started

STEPS = 8
SPARSE = {"pattern": "2:4", "rank": 2, "adapter_share": 0.5}
FORK = multiprocessing.get_context("fork")  # torch is loaded already


class SmallTokenizer(ByteTokenizer):
    """Bytes, folded into the 96 tokens of the test models."""

    def __call__(self, text: str, **options: Any) -> Any:
        return {"input_ids": [code % 96 for code in text.encode()[:20_000]]}


class Interrupted(Reporter):
    """Ends a training after a step, as a signal would."""

    def __init__(self, after: int) -> None:
        super().__init__(quiet=True)
        self.after = after

    def step(self, name: str, done: int, total: int, left_s: float | None = None) -> None:
        if done == self.after:
            raise KeyboardInterrupt


def untrained(folder: Path, family: str = "llama") -> Path:
    """A model of a family, made once; before several processes look for it.  -> its folder"""
    start = folder / family
    if not start.exists():
        families.save(family, start)
    return start


def train(
    folder: Path,
    name: str = "out",
    family: str = "llama",
    reporter: Reporter | None = None,
    workers: Workers | None = None,
    **options: Any,
) -> Path:
    """Train a model of a family, with snapshots after every step.  -> its folder"""
    start = untrained(folder, family)
    spec = TrainingSpec(**{"steps": STEPS, "batch": 4, "seqlen": 16} | options)
    out = folder / name
    kept = (folder / f"{name}.training", 1)
    workers = workers or alone(torch.device("cpu"))
    begin, quiet = pretrain.Start(start, family), reporter or Reporter(quiet=True)
    pretrain.train(begin, SmallTokenizer(), spec, out, workers, quiet, kept)
    return out


def losses(out: Path) -> list[float]:
    found: list[float] = json.loads((out / "training.json").read_text())["losses"]
    return found


def checkpoint(out: Path) -> bytes:
    return (out / f"ckpt_{STEPS}.pt").read_bytes()


def _one_of_two(rank: int, port: int, work: Callable[[Workers], object]) -> None:
    """A process as `torchrun` starts it."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {name: str(value) for name, value in (names | where).items()}
    with started() as workers:
        work(workers)


def two_processes(work: Callable[[Workers], object]) -> None:
    """Do `work` in two processes that are connected; both must come to its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [FORK.Process(target=_one_of_two, args=(rank, port, work)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
