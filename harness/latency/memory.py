"""Resident memory of a process, and stored bytes that a caller counted from files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil

from trinity.harness.engines.engine import Engine
from trinity.harness.records.facts import Cache, Memory
from trinity.harness.records.measurement import Measurement

T = TypeVar("T")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Bytes of this process in physical memory now."""
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> bool:
    """Forget the peak of resident memory so far; False where the system cannot."""
    try:
        _CLEAR.write_text("5", encoding="utf-8")  # Linux: reset the "high water mark" (man 5 proc)
    except OSError:
        return False
    return True


def high_water_bytes() -> int | None:
    """The peak of resident memory since the last reset; None if unknown here."""
    if not _STATUS.is_file():
        return None
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def peak_during(call: Callable[[], T]) -> tuple[T, int | None]:
    """A call's result, and the peak of resident memory during it (None if unknown here)."""
    known = reset_peak()
    result = call()
    return result, high_water_bytes() if known else None


def stored(sizes: Mapping[str, int], engine: Engine) -> list[Measurement]:
    """Bytes of a model's weights on disk: in all, and by component.

    sizes: counted from the files by the caller
    """
    total = sum(sizes.values())
    return [
        _bytes("stored" if name == "all" else f"stored-{name}", size, engine)
        for name, size in {"all": total, **sizes}.items()
    ]


def cache(
    engine: Engine, size: int, positions: int, kept: str, allocated: int | None
) -> Measurement:
    """Bytes of the keys and values of one sequence, in the format that the checkpoint declares.

    An engine whose path is 'simulated' computes with them as floats, and holds more.
    positions: that the sequence has   kept: the format, in words
    allocated: of a module, for as many positions as it was compiled for
    """
    held = Cache(cache_positions=positions, cache_format=kept, cache_allocated_bytes=allocated)
    return Measurement(
        name="cache",
        metric="cache_bytes",
        value=size,
        unit="bytes",
        higher_is_better=False,
        path=engine.path,
        engine=engine.name,
        details=held.details(),
    )


def peak(engine: Engine, before: int, at_most: int | None, scope: str) -> Measurement:
    """Peak of a process of its own that loaded and ran one engine.

    before: bytes resident before the model was loaded, libraries included   at_most: the peak
    """
    held = Memory(
        before_loading_bytes=before, model_bytes=None if at_most is None else at_most - before
    )
    return Measurement(
        name="peak-memory",
        metric="resident_bytes",
        value=at_most,
        unit="bytes",
        higher_is_better=False,
        path=engine.path,
        engine=engine.name,
        details={"scope": scope} | held.details(),
        reason=None if at_most is not None else "this system cannot reset a process's peak",
    )


def _bytes(name: str, size: int, engine: Engine) -> Measurement:
    return Measurement(
        name=name,
        metric="stored_bytes",
        value=size,
        unit="bytes",
        higher_is_better=False,
        path=engine.path,
        engine=engine.name,
    )
