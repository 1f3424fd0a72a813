"""What a number was measured on: code, packages, hardware, threads."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
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
    import torch  # here: the doctor asks for the rest where torch is broken

    commit, dirty = commit_here()
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


def numerics(device: "torch.device") -> dict[str, Any]:
    """What the bits of a floating-point result depend on besides its inputs."""
    import torch  # as in `environment`

    from trinity.harness.records import products  # likewise

    return {
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "architecture": platform.machine(),
        "products": products.library(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def tokenizing() -> dict[str, str | None]:
    """Versions of what turns a text into tokens."""
    return {name: _version(name) for name in ("transformers", "tokenizers")}


@cache
def machine_name() -> str:
    """A short name for file names: the kind of processor and its cores, not the host's name."""
    import torch  # as in `environment`

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
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit_here() -> tuple[str | None, bool | None]:
    """(commit, dirty) of the source tree this code runs from; None outside a checkout."""
    return _commit_of(Path(__file__).resolve().parent)


def project_here() -> dict[str, Any] | None:
    """Commit, its time, branch, and whether there are local changes, of the repository that a run
    is started in; None outside one.
    """
    here = Path.cwd()
    commit, dirty = _commit_of(here)
    if commit is None:
        return None
    return {
        "commit": commit,
        "committed": _git_says(here, "show", "--no-patch", "--format=%cI", "HEAD"),
        "branch": _branch(here),
        "dirty": dirty,
    }


def _commit_of(folder: Path) -> tuple[str | None, bool | None]:
    try:
        commit = _git_says(folder, "rev-parse", "HEAD")
        # Generated results do not change what the code computes.
        generated = [f":(exclude,top){name}" for name in ("results", "gate-results")]
        changed = _git_says(folder, "status", "--porcelain", "--", ":/", *generated)
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(changed)


def _branch(folder: Path) -> str | None:
    """The branch; where CI has checked a commit out by itself, what CI says of it."""
    name = _git_says(folder, "rev-parse", "--abbrev-ref", "HEAD")
    if name != "HEAD":
        return name
    told = ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME")
    return next((os.environ[key] for key in told if os.environ.get(key)), None)


def _git_says(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return done.stdout.strip()
