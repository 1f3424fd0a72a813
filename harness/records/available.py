"""Memory that this process may have: the machine's, or less where its control group is limited.

A container's limit is not what the machine has: who goes by the machine is killed by the system.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import psutil

_OWN = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")
# Version 2 and version 1 of control groups (Linux, admin-guide/cgroup-v2 and cgroup-v1/memory): the
# file of the limit, and what memory.stat calls the bytes that cannot be dropped.
_V2, _V1 = ("memory.max", "anon"), ("memory.limit_in_bytes", "total_rss")


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
