"""Resident memory of this process, and stored bytes that a caller counted from files."""

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from trinity.harness.engine import Engine
from trinity.harness.records.measurement import Measurement

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Bytes of this process in physical memory now."""
    return int(psutil.Process().memory_info().rss)


def lifetime_peak_bytes() -> int:
    """The most that this process ever held in physical memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes, except on macOS


def peak_during(call: Callable[[], T]) -> tuple[T, int | None]:
    """A call's result, and the peak of resident memory during it (None if unknown here)."""
    try:
        _CLEAR.write_text("5")  # Linux: reset the "high water mark" (man 5 proc)
    except OSError:
        return call(), None
    result = call()
    return result, _high_water_bytes()


def resident_peak(engine: Engine) -> list[Measurement]:
    """The peak of this process so far, which every engine and suite before has a part in."""
    return [_peak(engine, lifetime_peak_bytes(), "process lifetime")]


def resident_peak_during(engine: Engine, call: Callable[[], T], *, scope: str) -> list[Measurement]:
    """The peak while a call ran, the resident libraries and models included."""
    return [_peak(engine, peak_during(call)[1], scope)]


def stored(size_bytes: int, engine: Engine) -> list[Measurement]:
    """Bytes of a model's weights on disk, as counted by the caller."""
    return [
        Measurement(
            name="stored",
            metric="stored_bytes",
            value=size_bytes,
            unit="bytes",
            higher_is_better=False,
            path=engine.path,
            engine=engine.name,
        )
    ]


def _peak(engine: Engine, peak_bytes: int | None, scope: str) -> Measurement:
    return Measurement(
        name="peak-memory",
        metric="resident_bytes",
        value=peak_bytes,
        unit="bytes",
        higher_is_better=False,
        path=engine.path,
        engine=engine.name,
        details={"scope": scope, "includes": "the Python process with all its libraries"},
        reason=None if peak_bytes is not None else "this system cannot reset a process's peak",
    )


def _high_water_bytes() -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None
