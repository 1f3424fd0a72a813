"""All that two records differ in: numbers, what changed beside them, and questions that flipped."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trinity.harness.records import record
from trinity.harness.report import compared
from trinity.harness.statistics.comparison import Outcome
from trinity.harness.terminal.grid import Column, Grid
from trinity.harness.tracking import changes, flips
from trinity.harness.tracking.changes import Change
from trinity.harness.tracking.flips import Flip
from trinity.harness.tracking.measured import measurements_of

_SHOWN = 8  # of each kind of change, and questions; --json has all
_DIFFERS = ("worse", "slower", "better", "faster")


@dataclass(frozen=True, eq=False)
class Differences:
    """Beside the outcomes: of two records only."""

    changes: Sequence[Change]
    flips: Sequence[Flip]


def between(ours: str, baseline: str) -> Differences:
    """ours, baseline: record files; nothing is known of models"""
    if not ours.endswith(".json"):
        return Differences([], [])
    mine, theirs = record.read(Path(ours)), record.read(Path(baseline))
    answers = measurements_of(mine), measurements_of(theirs)
    return Differences(changes.between(mine, theirs), flips.of(*answers))


def largest_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """What differs before what does not, the largest effect first: by its share of what the samples
    let one see, so that a ratio and a difference can stand in one order.
    """
    return sorted(outcomes, key=_rank)


def as_data(outcomes: Sequence[Outcome], found: Differences) -> dict[str, Any]:
    """Plain data of everything."""
    listed = [asdict(change) for change in found.changes]
    for change in listed:
        if not math.isfinite(change["size"]):
            change["size"] = None  # JSON has no infinity
    return {
        "outcomes": [o.model_dump(mode="json") for o in largest_first(outcomes)],
        "changes": listed,
        "flips": [asdict(flip) for flip in found.flips],
    }


def grids(outcomes: Sequence[Outcome], found: Differences) -> list[Grid]:
    """A table of the numbers, one of what changed, one of the questions."""
    tables = [compared.grid(largest_first(outcomes))]
    if found.changes:
        tables.append(_changed(found.changes))
    if found.flips:
        tables.append(_flipped(found.flips))
    return tables


def _rank(o: Outcome) -> tuple[int, float]:
    order = 0 if o.verdict in _DIFFERS else 2 if o.verdict == "not comparable" else 1
    if o.effect is None:
        return order, -math.inf if order == 0 else 0.0
    none = 1.0 if o.kind == "ratio" else 0.0
    moved = abs(o.effect - none)
    width = (o.interval.high - o.interval.low) / 2 if o.interval else 0.0
    return order, -(moved / width if width > 0 else math.inf if moved else 0.0)


def _changed(found: Sequence[Change]) -> Grid:
    columns = [Column("changed"), Column("what"), Column("baseline"), Column("ours")]
    rows, notes = [], []
    for kind in dict.fromkeys(change.kind for change in found):
        alike: dict[tuple[str, str], list[Change]] = {}
        for change in found:
            if change.kind == kind:
                alike.setdefault((change.before, change.after), []).append(change)
        rows += [
            [kind, _names(same), _short(before), _short(after)]
            for (before, after), same in list(alike.items())[:_SHOWN]
        ]
        if len(alike) > _SHOWN:
            notes.append(f"and {len(alike) - _SHOWN} more of {kind}: --json has all")
    return Grid("", columns, rows, notes)


def _flipped(found: Sequence[Flip]) -> Grid:
    columns = [Column("task"), Column("engine", spare=2), Column("question", right=True)]
    columns += [Column("now"), Column("text")]
    rows = [
        [f.name, f.engine, str(f.index), "right" if f.right else "wrong", f.text]
        for f in found[:_SHOWN]
    ]
    wrong = sum(not flip.right for flip in found)
    notes = [f"{wrong} questions became wrong, {len(found) - wrong} right"]
    if len(found) > _SHOWN:
        notes[0] += f"; the first {_SHOWN} are shown, --json has all"
    if not any(flip.text for flip in found):
        notes.append("their text is shown where TRINITY_DATA_DIR has the data of the records")
    return Grid("", columns, rows, notes)


def _names(same: Sequence[Change]) -> str:
    more = f" and {len(same) - 1} more" if len(same) > 1 else ""
    return f"{same[0].what}{more}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
