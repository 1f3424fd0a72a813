"""A process that works through cases and tells its parent of each; what kills it costs one case.

After a case that raised, it ends: a fault can leave a device in a state in which all that follows
fails too.  The parent starts another one at the next case.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "iree-base-runtime")
LONGEST = 600  # characters of an error in a row
RAISED = 3  # exit code after a case that raised


def main(arguments: list[str]) -> int:
    """Say where this is, work through cases, and write a line after each to a file descriptor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--pipe", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--rotate", type=int, required=True)
    parser.add_argument("--cases", type=json.loads, required=True)
    options = parser.parse_args(arguments)
    manifest = json.loads((options.bundle / "bundle.json").read_text("utf-8"))
    with os.fdopen(options.pipe, "w", encoding="utf-8") as parent:
        tell(parent, {"environment": environment()})
        for number in options.cases:
            try:
                rows = made(options.bundle, manifest["cases"][number], options)
            except Exception as error:  # whatever it is, it is a row
                tell(parent, {"error": described(error)})
                return RAISED
            tell(parent, {"rows": rows})
    return 0


def tell(parent: Any, message: Mapping[str, Any]) -> None:
    """A line, now."""
    parent.write(json.dumps(message) + "\n")
    parent.flush()


def described(error: BaseException) -> str:
    """An error and what it came from, in one line."""
    words, seen = [], error
    while seen is not None:
        words.append(f"{type(seen).__name__}: {' '.join(str(seen).split())}")
        seen = seen.__cause__
    return " | from ".join(words)[:LONGEST]


def made(bundle: Path, case: Mapping[str, Any], options: Any) -> Any:
    """The rows of a case.  Imports are here, so that a package that is missing is a row as well."""
    if case["kind"] == "device":
        return device(case)
    if case["kind"] in ("bandwidth", "alone"):
        from benchmarks.gpu.first_day import alone

        return getattr(alone, case["kind"])(bundle, case, options)
    if case["kind"] == "decode":
        from benchmarks.gpu.first_day import decoding

        return decoding.decode(bundle, case, options)
    from benchmarks.gpu.first_day import products

    return getattr(products, case["kind"])(bundle, case, options)


def device(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the runtime finds of a target's device; raises MachineError if it cannot be opened."""
    import iree.runtime as rt

    from benchmarks.gpu.first_day.rows import row
    from trinity.lowering.module.devices import open_device
    from trinity.lowering.targets import targets

    target = targets.get(case["target"])
    open_device(target)
    found = rt.get_driver(target.driver).query_available_devices()
    details = {"devices": [{key: str(value) for key, value in one.items()} for one in found]}
    return [row(case["name"], "devices", float(len(found)), "1", path="reference", details=details)]


def environment() -> dict[str, Any]:
    """What the rows are made on, in the words of harness/records/environment.py."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = {
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
        "platform": platform.platform(terse=True),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": pages,
        "gpu": None,
    }
    try:
        import torch

        found |= {
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
            "cuda": torch.version.cuda,
        }
    except Exception as error:  # a torch that does not start fails in every case, which says so
        found["torch"] = described(error)
    words = found["gpu"] or f"{cpu()} {os.cpu_count()}c"
    kept = "".join(c if c.isalnum() else "-" for c in words.lower().replace("(r)", ""))
    return found | {"machine": "-".join(part for part in kept.split("-") if part)}


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(package: str) -> str | None:
    """The version of a package, None without."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
