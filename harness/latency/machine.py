"""What a timing depends on: the processor, its clock policy, and the threads that may run."""

import os
from pathlib import Path
from typing import Any

import torch

from trinity.harness.records.environment import cpu_model

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe() -> dict[str, Any]:
    """Plain values for a measurement's details; 'unknown' where this system does not say."""
    return {
        "cpu": cpu_model(),
        "cpus_usable": usable_cpus(),
        "torch_threads": torch.get_num_threads(),
        "clock_policy": _GOVERNOR.read_text().strip() if _GOVERNOR.is_file() else "unknown",
    }


def usable_cpus() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
