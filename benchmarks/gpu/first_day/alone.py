"""CUDA kernels without IREE: launched through the driver, timed by events, beside cuBLAS."""

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks import cuda_kernels
from benchmarks.gpu.first_day.rows import Row, failed, row, seconds, speedup
from trinity.lowering.kernels.cuda.tiles import Tiles
from trinity.methods.errors import MachineError
from trinity.methods.formats import WeightFormat

ENGINE = "cuda-driver"
DEVICE = "cuda"


@cache
def driver() -> cuda_kernels.Driver:
    """The driver, in torch's context."""
    if not torch.cuda.is_available():
        msg = (
            "torch sees no NVIDIA GPU, and kernels are launched in its context. Install torch "
            "for CUDA."
        )
        raise MachineError(msg)
    torch.zeros(1, device=DEVICE)  # makes the context
    return cuda_kernels.Driver(ctypes.CDLL("libcuda.so.1"))


def bandwidth(_: Path, case: Mapping[str, Any], __: Any) -> list[Row]:
    """Bytes a second of a copy, which no product can pass."""
    driver()
    rate = cuda_kernels.copy_bandwidth()
    more = {"higher_is_better": True, "path": "reference", "engine": "torch"}
    return [row(case["name"], "bytes_per_s", rate, "bytes/s", **more)]


def alone(_: Path, case: Mapping[str, Any], options: Any) -> list[Row]:
    """One kernel against float64, then timed in a CUDA graph in turn with a graph of cuBLAS's."""
    launcher, rows = driver(), case["rows"]
    error = cuda_kernels.worst_error(launcher, rows, torch.device(DEVICE))
    allowed = cuda_kernels.TOLERANCE
    if not error < allowed:
        why = f"wrong: {error:.1e} of the largest output, where {allowed:.0e} is allowed."
        return [failed(case["name"], "seconds", why, engine=ENGINE, details={"error": error})]
    weight_format = WeightFormat.from_json(case["format"])
    tiles = Tiles(weight_format)
    found = cuda_kernels.timed(launcher, case["name"], tiles, rows, options.repeats)
    ours, theirs = (found.pop(f"{name}_samples_s") for name in ("ours", "cublas"))
    details = {**found, "format": weight_format.label, "dtype": "float16", "error": error}
    about = {"engine": ENGINE, "details": details}
    dense = {"engine": "cublas", "path": "reference", "details": details | {"format": "float16"}}
    return [
        seconds(case["name"], ours, **about),
        seconds(case["name"], theirs, **dense),
        speedup(case["name"], ours, theirs, **about),
    ]
