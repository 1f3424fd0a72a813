"""Numbers as people read them: four digits that mean something, and a unit."""

import math

from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics.comparison import SHARES

DIGITS = 4
NOTHING = "–"
# Unit of a measurement -> (factor, unit) of those that people read, the first that reaches 1.
SCALES: dict[str, tuple[tuple[float, str], ...]] = {
    "s": ((1.0, "s"), (1e3, "ms"), (1e6, "µs")),
    "bytes": ((2.0**-30, "GiB"), (2.0**-20, "MiB"), (2.0**-10, "KiB"), (1.0, "bytes")),
    "bytes/s": ((1e-9, "GB/s"), (1e-6, "MB/s")),
    "flop/s": ((1e-12, "TFLOP/s"), (1e-9, "GFLOP/s"), (1e-6, "MFLOP/s")),
    "bits": ((1.0, "bits/weight"),),
}


def significant(value: float, digits: int = DIGITS) -> str:
    """'28.53', '3,022', '0.001234': no more digits than are asked for, no exponent."""
    if not math.isfinite(value):
        return "infinite" if value > 0 else str(value)
    return f"{value:,.{decimals(value, digits)}f}"


def decimals(value: float, digits: int = DIGITS) -> int:
    """Decimal places that leave a number this many significant digits."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(9, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def scale_of(metric: str, unit: str, size: float) -> tuple[float, str]:
    """Factor and unit that a number of this size is read in."""
    if metric in SHARES:
        return 100.0, "%"
    if metric == "speedup":
        return 1.0, "x"
    options = SCALES.get(unit)
    if options is None:
        return 1.0, "" if unit == "1" else unit
    return next((option for option in options if abs(size) * option[0] >= 1), options[-1])


def scaled(metric: str, unit: str, value: float) -> str:
    """'28.53', '54.0 %', '4.957 ms', '5.360x'."""
    factor, name = scale_of(metric, unit, value)
    number = _number(metric, factor * value)
    return f"{number}{name}" if name == "x" else f"{number} {name}".rstrip()


def value_text(m: Measurement) -> str:
    """A measurement's value with its unit; a dash where nothing was measured."""
    return NOTHING if m.value is None else scaled(m.metric, m.unit, m.value)


def without_value(m: Measurement) -> str:
    """'exp(812.3)' and 'infinite' of what was measured and is no number; else a dash."""
    if m.reason is None or not m.reason.startswith(("infinite", "exp(")):
        return NOTHING
    return m.reason.partition(",")[0].partition(":")[0]


def number_text(m: Measurement) -> str:
    """The same without its unit."""
    if m.value is None:
        return NOTHING
    return _number(m.metric, scale_of(m.metric, m.unit, m.value)[0] * m.value)


def interval_text(m: Measurement) -> str:
    """'[22.97, 34.81]', in the unit and to the decimal of the value; empty without one."""
    if m.interval is None or m.value is None:
        return ""
    factor, _ = scale_of(m.metric, m.unit, m.value)
    places = _places(m.metric, factor * m.value)
    bounds = (factor * bound for bound in (m.interval.low, m.interval.high))
    return f"[{', '.join(f'{bound:,.{places}f}' for bound in bounds)}]"


def _number(metric: str, value: float) -> str:
    if not math.isfinite(value):
        return significant(value)
    return f"{value:,.{_places(metric, value)}f}"


def _places(metric: str, value: float) -> int:
    """Of a percent one: a task has hundreds of examples, seldom thousands."""
    return 1 if metric in SHARES else decimals(value)
