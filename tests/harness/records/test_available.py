import multiprocessing
import platform
from multiprocessing.queues import Queue
from pathlib import Path

import psutil
import pytest
import torch

from trinity.harness.latency import memory
from trinity.harness.records import available


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(available, "_ROOT", tmp_path / "groups")
    monkeypatch.setattr(available, "_OWN", tmp_path / "own")
    return tmp_path / "groups"


def test_without_control_groups_it_is_the_machine(root: Path) -> None:
    assert available.total_bytes() == psutil.virtual_memory().total
    assert 0 < available.available_bytes() <= psutil.virtual_memory().total


def test_the_tightest_group_above_counts(root: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("0::/a/b\n", encoding="utf-8")
    group(root, {"memory.stat": "anon 5\n"})
    group(root / "a", {"memory.max": "3000000\n", "memory.stat": "anon 1000000\nfile 9\n"})
    group(root / "a/b", {"memory.max": "max\n", "memory.stat": "anon 7\n"})
    assert available.total_bytes() == 3_000_000
    assert available.available_bytes() == 2_000_000


def test_version_1_counts_what_cannot_be_dropped(root: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("4:cpu:/x\n9:memory,hugetlb:/job\n", encoding="utf-8")
    files = {"memory.limit_in_bytes": "8000", "memory.stat": "cache 7000\ntotal_rss 6000\n"}
    group(root / "memory/job", files)
    assert (available.total_bytes(), available.available_bytes()) == (8000, 2000)


def test_a_group_named_as_outside_of_a_container_is_the_one_at_the_top(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text("0::/system.slice/docker-1.scope\n", encoding="utf-8")
    group(root, {"memory.max": "4096", "memory.stat": "anon 5000\n"})
    assert (available.total_bytes(), available.available_bytes()) == (4096, 0)


SIZE = 3 << 20  # numbers, 12 MiB


def taken_and_left(answer: "Queue[tuple[int, int]]") -> None:
    """Bytes that large blocks took, and those that are left when they are freed."""
    torch.ones(2 * SIZE)  # glibc's own rule would take the next ones from its heap
    with available.large_mapped():
        before = memory.resident_bytes()
        large, small = [], []
        for _ in range(8):
            large.append(torch.ones(SIZE))
            small.append(torch.ones(1000))  # above it, the heap could not shrink
        taken = memory.resident_bytes() - before
        large.clear()
        answer.put((taken, memory.resident_bytes() - before))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
def test_large_blocks_leave_no_holes_once_they_are_freed() -> None:
    """In a process whose heap nobody else has used."""
    context = multiprocessing.get_context("spawn")
    answer: Queue[tuple[int, int]] = context.Queue()
    process = context.Process(target=taken_and_left, args=(answer,))
    process.start()
    taken, left = answer.get(timeout=100)
    process.join()
    assert taken > 7 * 4 * SIZE
    assert left < 4 * SIZE


def test_a_library_that_cannot_be_told_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(available.ctypes, "CDLL", lambda _: object())
    with available.large_mapped():
        available.give_back()
