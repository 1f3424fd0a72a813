"""Two records or models beside each other: what may be said of every measurement of both."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from trinity.harness.records.measurement import Interval
from trinity.harness.report import verdicts
from trinity.harness.report.numbers import NOTHING, decimals, scaled, significant
from trinity.harness.statistics.comparison import NO_DIFFERENCE, SHARES, Outcome
from trinity.harness.terminal.grid import Column, Grid


class Cells(NamedTuple):
    """The numbers of a comparison, as text; empty where there is none."""

    ours: str
    baseline: str
    effect: str
    interval: str


UNITS = {"stored_bytes": "bytes", "bits_per_weight": "bits"}


def grid(outcomes: Sequence[Outcome]) -> Grid:
    """A row a measurement; those that were tested say how."""
    columns = [
        Column("measurement"),
        Column("metric", spare=4),
        Column("engine", spare=3),
        Column("ours", right=True),
        Column("baseline", right=True),
        Column("effect", right=True),
        Column("95% interval", right=True, spare=1),
        Column("verdict"),
        Column("test", spare=2),
    ]
    rows = [
        [o.name, o.metric.replace("_", " "), o.engine, *cells(o), o.verdict, _evidence(o)]
        for o in outcomes
    ]
    return Grid("", columns, rows)


def cells(o: Outcome) -> Cells:
    """An outcome's numbers as they are read."""
    return Cells(_value(o, o.ours), _value(o, o.baseline), _effect(o), _interval(o))


def _value(o: Outcome, value: float | None) -> str:
    return NOTHING if value is None else scaled(o.metric, UNITS.get(o.metric, "1"), value)


def _effect(o: Outcome) -> str:
    """'1.020x', '-2.5 points', '+0.123': ours over the baseline's, or ours less it."""
    if o.effect is None or o.verdict == "equal":
        return ""
    if o.kind == "ratio":
        return f"{significant(o.effect)}x"
    return f"{100 * o.effect:+.1f} points" if o.metric in SHARES else f"{o.effect:+.3g}"


def _interval(o: Outcome) -> str:
    found: Interval | None = o.interval
    if found is None or o.effect is None:
        return ""
    factor, places = (100, 1) if o.metric in SHARES else (1, decimals(o.effect))
    bounds = [
        f"{factor * bound:,.{places}f}" if math.isfinite(bound) else significant(bound)
        for bound in (found.low, found.high)
    ]
    return f"[{', '.join(bounds)}]"


def _evidence(o: Outcome) -> str:
    """'p < 0.001 after Holm over 12, 8 pairs', or why nothing may be said."""
    if o.p_adjusted is None:
        return o.reason or o.test
    said = f"{verdicts.p_text(o.p_adjusted)} after Holm over {o.compared}, {o.samples} pairs"
    return f"{said}, {verdicts.detectable_text(o)}" if o.verdict == NO_DIFFERENCE else said
