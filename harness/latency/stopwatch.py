"""Seconds and peak memory of the phases of a long computation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from trinity.harness.latency import memory


class Stopwatch:
    """Adds up seconds by phase, and keeps the largest resident memory seen in each.

    Phases must not overlap: each resets the process's high-water mark.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside belongs to this phase."""
        known = memory.reset_peak()
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            if known:
                peak = memory.high_water_bytes() or 0
                self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), peak)

    def take(self) -> dict[str, dict[str, float]]:
        """What was measured since the last time, by phase, as plain data."""
        found: dict[str, dict[str, float]] = {
            name: {"seconds": seconds, "peak_bytes": self.peak_bytes.get(name, 0)}
            for name, seconds in self.seconds.items()
        }
        self.seconds, self.peak_bytes = {}, {}
        return found
