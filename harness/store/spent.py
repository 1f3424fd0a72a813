"""Where the time goes: seconds that stages took to make, by the part of a run they belong to."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

COMPRESS, LOWER, EVALUATE, BENCH, OTHER = "compress", "lower", "evaluate", "bench", "other"
_PARTS = {
    **dict.fromkeys(
        ("calibration", "plan", "block", "tuned", "tuned-block", "imported", "checkpoint"),
        COMPRESS,
    ),
    **dict.fromkeys(("exported", "module", "parameters", "verification"), LOWER),
    "suite": EVALUATE,
    **dict.fromkeys(("bench", "ceilings"), BENCH),
}


@dataclass(frozen=True)
class Seconds:
    """Of the clock, and of all processors that worked for it, programs it started included."""

    wall: float = 0.0
    processors: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        """Both together."""
        return Seconds(self.wall + other.wall, self.processors + other.processors)

    def __sub__(self, other: "Seconds") -> "Seconds":
        """What is left of it."""
        return Seconds(self.wall - other.wall, self.processors - other.processors)

    @classmethod
    def now(cls) -> "Seconds":
        """Of this process so far."""
        used = os.times()
        return cls(
            time.perf_counter(),
            used.user + used.system + used.children_user + used.children_system,
        )


NOTHING: Mapping[str, Seconds] = {}


class Spent:
    """What a process spent on stages that it made.  Of a stage that is made for another one, the
    time counts where it belongs.
    """

    def __init__(self) -> None:
        self._started = Seconds.now()
        self._parts: dict[str, Seconds] = {}
        self._inner: list[Seconds] = []

    @contextmanager
    def making(self, kind: str) -> Iterator[None]:
        """Count what happens meanwhile.  kind: of the stage"""
        start = Seconds.now()
        self._inner.append(Seconds())
        try:
            yield
        finally:
            took = Seconds.now() - start
            own, part = took - self._inner.pop(), _PARTS.get(kind, OTHER)
            self._parts[part] = self._parts.get(part, Seconds()) + own
            if self._inner:
                self._inner[-1] += took

    def parts(self) -> dict[str, Seconds]:
        """By part, all of the time since the beginning: what made no stage is with the others'."""
        total = Seconds.now() - self._started
        known = {part: found for part, found in self._parts.items() if part != OTHER}
        return known | {OTHER: total - sum(known.values(), Seconds())}


def since(before: Mapping[str, Seconds], now: Mapping[str, Seconds]) -> dict[str, Seconds]:
    """What was spent between two looks at `Spent.parts`."""
    return {part: found - before.get(part, Seconds()) for part, found in now.items()}


def together(*spent: Mapping[str, Seconds]) -> dict[str, Seconds]:
    """The sum of several, part by part."""
    parts = dict.fromkeys(part for each in spent for part in each)
    return {part: sum((each[part] for each in spent if part in each), Seconds()) for part in parts}
