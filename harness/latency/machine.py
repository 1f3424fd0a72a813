"""What a timing depends on: the processor, its clock, the threads that may run, and the rest of
the machine's load meanwhile.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from trinity.harness.records.environment import cpu_model
from trinity.harness.records.facts import Conditions

__all__ = ["cpu_model", "describe", "instructions", "is_busy", "usable_cpus", "watched"]

_CPU = Path("/sys/devices/system/cpu")
_INFO = Path("/proc/cpuinfo")
_GOVERNOR = _CPU / "cpu0/cpufreq/scaling_governor"
_CGROUP = Path("/sys/fs/cgroup/cpu.stat")
UNKNOWN = "unknown"


def describe() -> dict[str, Any]:
    """Plain values for a measurement's details; 'unknown' where this system does not say."""
    known = Conditions(cpu=cpu_model(), torch_threads=torch.get_num_threads())
    return known.details("cpu", "torch_threads") | {
        "cpus_usable": usable_cpus(),
        "pinned_to": _affinity(),
        "clock_policy": _GOVERNOR.read_text(encoding="utf-8").strip()
        if _GOVERNOR.is_file()
        else UNKNOWN,
    }


def usable_cpus() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def instructions() -> frozenset[str] | None:
    """Extensions of the processor's instructions by the system's names; None where it has none."""
    if not _INFO.is_file():
        return None
    for line in _INFO.read_text(encoding="utf-8").splitlines():
        if line.startswith(("flags", "Features")):  # x86, Arm
            return frozenset(line.partition(":")[2].split())
    return None


def is_busy() -> bool:
    """Whether more processes run or wait than this one and the processors it may use."""
    return os.getloadavg()[0] > usable_cpus() + 1


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Fill the yielded mapping, at the end, with what happened to the machine meanwhile.

    clock_mhz: at start and end, as the system tells it   throttled: events of the processor's
    thermal protection   cpu_quota_throttled_s: the container's limit   stolen_s: processor time
    that a hypervisor gave to others   major_faults: pages of this process that were read from disk,
    weights that the system had dropped among them   load: waiting and running processes, mean of a
    minute
    """
    seen: dict[str, Any] = {}
    clock, heat, quota, stolen = _clock(), _throttled(), _quota(), _stolen()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    try:
        yield seen
    finally:
        seen["clock_mhz"] = [clock, _clock()]
        seen["throttled"] = _grown(heat, _throttled())
        seen["cpu_quota_throttled_s"] = _grown(quota, _quota())
        seen["stolen_s"] = _grown(stolen, _stolen())
        seen["major_faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
        seen["load"] = round(os.getloadavg()[0], 2)


def _affinity() -> Any:
    """The processors by number where that is fewer than the machine has."""
    if not hasattr(os, "sched_getaffinity"):
        return UNKNOWN
    allowed = sorted(os.sched_getaffinity(0))
    return allowed if len(allowed) < (os.cpu_count() or 1) else "no processor"


def _clock() -> Any:
    # None on systems that do not tell, which psutil's types leave out.
    found: Any = psutil.cpu_freq()
    return UNKNOWN if found is None else round(found.current)


def _throttled() -> float | None:
    counts = [
        int(path.read_text(encoding="utf-8"))
        for path in _CPU.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    ]
    return sum(counts) if counts else None


def _quota() -> float | None:
    if not _CGROUP.is_file():
        return None
    for line in _CGROUP.read_text(encoding="utf-8").splitlines():
        if line.startswith("throttled_usec "):
            return int(line.split()[1]) / 1e6
    return None


def _stolen() -> float | None:
    stolen = getattr(psutil.cpu_times(), "steal", None)
    return None if stolen is None else float(stolen)


def _grown(before: float | None, after: float | None) -> Any:
    return UNKNOWN if before is None or after is None else round(after - before, 3)
