"""Memory that this process may have: the machine's, or less where its control group is limited.

A container's limit is not what the machine has: who goes by the machine is killed by the system.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

_OWN = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
# Version 2 and version 1 of control groups (Linux, admin-guide/cgroup-v2 and cgroup-v1/memory): the
# file of the limit, and what memory.stat calls the bytes that cannot be dropped.
_V2, _V1 = ("memory.max", "anon"), ("memory.limit_in_bytes", "total_rss")
# glibc's (malloc.h, and DEFAULT_MMAP_THRESHOLD_MAX on 64 bits).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST_THRESHOLD = -1, -3, 1 << 25
MAPPED = 1 << 20  # bytes: of less, holes are small beside what libraries take


def total_bytes() -> int:
    """What this process and its children may have at most."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _limits())])


def available_bytes() -> int:
    """What they may have beyond what is taken; pages of files can be dropped, so they are free."""
    free = [limit - taken for limit, taken in _limits()]
    return max(0, min([psutil.virtual_memory().available, *free]))


def give_back() -> None:
    """Hand freed memory back to the system, where the C library can: glibc keeps large blocks in
    its heap once some were freed, and a walk over many layers leaves holes as large as the model.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


@contextmanager
def large_mapped() -> Iterator[None]:
    """Within, glibc maps every block of 1 MiB or more by itself, and it is gone when it is freed.

    By its own rule it does so from 128 KiB on until one is freed, and then from the size of that
    one on, 32 MiB at most: matrices of such sizes leave holes, which differ from run to run.
    Where the C library cannot be told (musl, macOS) nothing changes.
    """
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is None:
        yield
        return
    _set(tell, MAPPED)
    try:
        yield
    finally:
        # What its own rule comes to in the end; the rule itself cannot be brought back.
        _set(tell, _LARGEST_THRESHOLD)


def _set(tell: Callable[[int, int], int], mapped: int) -> None:
    tell(_MMAP_THRESHOLD, mapped)
    tell(_TRIM_THRESHOLD, 2 * mapped)  # as in its own rule: of the heap's end, what is left free


def _limits() -> Iterator[tuple[int, int]]:
    """(limit, bytes taken) of every control group around this process that has a limit."""
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            top, names = _ROOT, _V2
        elif "memory" in controllers.split(","):
            top, names = _ROOT / "memory", _V1
        else:
            continue
        here = top / name.lstrip("/")
        # In a container, the group's own name may be that outside of it.
        here = here if here.is_dir() else top
        while here == top or top in here.parents:
            if found := _limit(here, *names):
                yield found
            here = here.parent


def _limit(group: Path, limit: str, taken: str) -> tuple[int, int] | None:
    try:
        most = int((group / limit).read_text(encoding="utf-8"))  # "max" where there is none
        stat = (group / "memory.stat").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    counted = dict(line.split(maxsplit=1) for line in stat.splitlines())
    return most, int(counted.get(taken, 0))
