"""What a re-run must give, and how far it may be off; and what every run cost."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trinity.harness.figures.shown import Shown
from trinity.harness.records.measurement import Measurement
from trinity.harness.report.verdicts import ACCURACY
from trinity.harness.runs.attempts import Attempt
from trinity.harness.statistics.comparison import SIZES, SPEEDUP

EXACT, INTERVAL, RATIO = "exact", "interval", "ratio"
SPEED_SHARE = 0.25  # how much a speed-up may differ on a machine of the same kind, beside its noise
RULES = {
    EXACT: "counts of bytes and bits must be the same",
    INTERVAL: (
        "an accuracy must lie in the record's 95% interval; on the same versions, threads and kind "
        "of processor it is the same number"
    ),
    RATIO: (
        f"the 95% interval of a speed-up over the dense model, timed in turn with it, must come "
        f"within {SPEED_SHARE:.0%} of the record's; absolute times are told and never judged"
    ),
}


def names_of(runs: Sequence[Shown]) -> dict[str, str]:
    """A record's path -> the name of its recipe's file: the recipe's, or with model and machine
    where several runs have it.
    """
    count = Counter(run.name for run in runs)
    return {
        run.path: run.name if count[run.name] == 1 else f"{run.model}-{run.name}-{run.machine}"
        for run in runs
    }


def expected(runs: Sequence[Shown]) -> list[dict[str, Any]]:
    """One entry a number that is judged: its run, name, rule, value and bounds."""
    found: list[dict[str, Any]] = []
    names = names_of(runs)
    for run in runs:
        bits = run.record.checkpoint.bits_per_weight
        whole = {"run": names[run.path], "name": "checkpoint", "metric": "bits_per_weight"}
        found.append({**whole, "engine": "files", "rule": EXACT, "value": bits})
        for m in run.record.measurements:
            if (entry := _entry(m)) is not None:
                found.append({"run": names[run.path], **entry})
    return found


def _entry(m: Measurement) -> dict[str, Any] | None:
    known = {"name": m.name, "metric": m.metric, "engine": m.engine, "value": m.value}
    if m.value is None:
        return None
    if m.metric in SIZES:
        return {**known, "rule": EXACT}
    if m.metric in ACCURACY and m.interval is not None:
        return {**known, "rule": INTERVAL, "low": m.interval.low, "high": m.interval.high}
    if m.metric == SPEEDUP and m.path != "simulated":
        ends = (m.interval.low, m.interval.high) if m.interval else (m.value, m.value)
        low, high = ends[0] * (1 - SPEED_SHARE), ends[1] * (1 + SPEED_SHARE)
        return {**known, "rule": RATIO, "low": low, "high": high}
    return None


def compute(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """What runs took, by how they ended: number, hours, processor hours, largest peak of memory."""
    found = []
    for status in ("finished", "failed", "interrupted", "running"):
        those = [one for one in attempts if one.status == status]
        if those:
            found.append(
                {
                    "status": "killed, or still running" if status == "running" else status,
                    "runs": len(those),
                    "wall_h": round(sum(one.wall_s for one in those) / 3600, 3),
                    "cpu_h": round(sum(one.cpu_s for one in those) / 3600, 3),
                    "peak_memory_gib": round(max(x.peak_memory_bytes for x in those) / 2**30, 2),
                }
            )
    return found
