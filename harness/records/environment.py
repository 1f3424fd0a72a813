"""What a number was measured on: code, packages, hardware, threads."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    "compression-trinity",
    "torch",
    "transformers",
    "torch-mlir",
    "iree-base-compiler",
    "iree-base-runtime",
    "lm-eval",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
    "scipy",
)


@cache
def environment() -> dict[str, Any]:
    """Everything a reader needs to judge or repeat a measurement, as plain data."""
    commit, dirty = _git()
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(terse=True),
        "machine": machine_name(),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def numerics(device: torch.device) -> dict[str, Any]:
    """What the bits of a floating-point result depend on besides its inputs."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "architecture": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


@cache
def machine_name() -> str:
    """A short name for file names: the kind of processor and its cores, not the host's name."""
    if torch.cuda.is_available():
        words = torch.cuda.get_device_name(0)
    else:
        words = f"{cpu_model()} {os.cpu_count()}c"
    kept = "".join(c if c.isalnum() else "-" for c in words.lower().replace("(r)", ""))
    return "-".join(part for part in kept.split("-") if part)


@cache
def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> tuple[str | None, bool | None]:
    """(commit, dirty) of the source tree this code runs from; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git_says(here, "rev-parse", "HEAD")
        # Generated results do not change what the code computes.
        changed = _git_says(here, "status", "--porcelain", "--", ":/", ":(exclude,top)results")
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changed)


def _git_says(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
