"""What a gate says of records: of each measurement, of each recipe, and in all.

A regression is shown by a test on the samples, is not smaller than the policy's minimum, and lies
with its whole interval beyond what the policy lets through.  Where nothing can be said, no gate
passes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.report import verdicts
from trinity.harness.statistics import comparison
from trinity.harness.statistics.comparison import SPEEDUP, Outcome, Pair
from trinity.harness.tracking.measured import measurements_of
from trinity.harness.tracking.policy import Check, Policy
from trinity.harness.tracking.references import Kept, Reference

PASSED, REGRESSED, UNJUDGED = 0, 1, 4  # exit codes
Status = Literal["passed", "regressed", "warned", "new", "unjudged", "noted"]
NO_BASELINE = "the baseline has no such measurement"


@dataclass(frozen=True)
class Broken:
    """A recipe whose run left no record, and why."""

    recipe: str
    why: str


@dataclass(frozen=True, eq=False)
class Ran:
    """A recipe's record that is judged, and where it is kept."""

    recipe: str
    kept: Kept


@dataclass(frozen=True, eq=False)
class Judgement:
    """One measurement of one recipe under one check.

    status: unjudged fails the gate, noted does not; new is what the baseline has not measured
    baseline: the place of the record that it was compared with
    """

    recipe: str
    check: Check
    outcome: Outcome
    status: Status
    why: str = ""
    baseline: str = ""


@dataclass(frozen=True, eq=False)
class Gate:
    """All that a gate says.  against: the baseline, in words"""

    against: str
    judgements: Sequence[Judgement]
    broken: Sequence[Broken]

    def of(self, *statuses: Status) -> list[Judgement]:
        """The judgements of some statuses."""
        return [one for one in self.judgements if one.status in statuses]

    @property
    def exit_code(self) -> int:
        """1 if something regressed; 4 if a run broke, a check could not be made, or none was."""
        if self.of("regressed"):
            return REGRESSED
        if self.broken or self.of("unjudged") or not self.of("passed", "warned"):
            return UNJUDGED
        return PASSED

    @property
    def word(self) -> str:
        """'passed', 'regressed', 'not judged'."""
        return {PASSED: "passed", REGRESSED: "regressed", UNJUDGED: "not judged"}[self.exit_code]


def judge(policy: Policy, runs: Sequence[Ran | Broken], reference: Reference) -> Gate:
    """Everything that the policy asks for; Holm's correction is over all of it together."""
    asked: list[tuple[str, Check, Pair, str]] = []
    lost: list[Judgement] = []
    for ran in runs:
        if isinstance(ran, Broken):
            continue
        baselines = reference.of(ran.kept.record, besides=ran.kept.place)
        for check in policy.checks:
            none = reference.why_none(ran.recipe)
            pairs = _pairs(check, ran.kept.record, baselines, none)
            asked += [(ran.recipe, check, pair, place) for pair, place in pairs]
            lost += _lacking(ran.recipe, check, ran.kept.record, baselines)
    outcomes = comparison.judge([pair for _, _, pair, _ in asked])
    judged = [
        _judgement(recipe, check, outcome, place)
        for (recipe, check, _, place), outcome in zip(asked, outcomes, strict=True)
    ]
    broken = [ran for ran in runs if isinstance(ran, Broken)]
    empty = [] if len(broken) == len(runs) else _empty(policy, [*judged, *lost])
    return Gate(reference.label, [*judged, *lost, *empty], broken)


def regression(outcome: Outcome, allow: float, minimum: float, allowed: str) -> str | None:
    """Why a comparison fails a gate; None if it does not.

    allow, minimum: as a policy has them   allowed: what lets `allow` through, in words
    """
    lost = not _is_number(outcome.ours) and _is_number(outcome.baseline)
    if outcome.metric in verdicts.ACCURACY and lost and outcome.verdict == "not comparable":
        return f"has no value ({outcome.reason})"
    if outcome.verdict not in ("worse", "slower"):
        return None
    if outcome.effect is None:
        return f"{outcome.verdict} by more than a number can say"
    none = 1.0 if outcome.kind == "ratio" else 0.0
    if abs(outcome.effect - none) < minimum:
        return None
    low, high = outcome.effect - none, outcome.effect - none
    if outcome.interval:
        low, high = outcome.interval.low - none, outcome.interval.high - none
    nearest = min(abs(low), abs(high)) if (low > 0) == (high > 0) else 0.0
    if nearest <= allow:
        return None
    return f"{outcome.verdict} by at least {nearest:.4g}, where {allowed} {allow:g}"


def _pairs(
    check: Check, ours: Record, baselines: Sequence[Kept], none: str
) -> list[tuple[Pair, str]]:
    """Every measurement that a check covers against the newest baseline's; a speed against that of
    the slowest baseline with which it can be compared, since processes differ more than samples of
    one process show.

    none: why there are no baselines, if there are none
    """
    measured, found = measurements_of(ours), []
    for m in filter(check.covers, filter(_says_something, measured)):
        options = [
            (pair, kept.place)
            for kept in reversed(baselines)
            for pair in comparison.pairs_of([m], measured, measurements_of(kept.record))
        ]
        usable = [option for option in options if not option[0].reason]
        if m.metric == SPEEDUP and usable:
            found.append(min(usable, key=lambda option: _value(option[0].baseline)))
        elif options:
            found.append(options[0])
        else:
            found.append((Pair(m, None, reason=none), ""))
    return found


def _value(m: Measurement | None) -> float:
    assert m is not None
    assert m.value is not None
    return m.value


def _judgement(recipe: str, check: Check, outcome: Outcome, place: str) -> Judgement:
    why = regression(outcome, check.allow, check.minimum, "the policy allows")
    if why:
        status: Status = "regressed" if check.severity == "fail" else "warned"
        return Judgement(recipe, check, outcome, status, why, place)
    if outcome.verdict == "not comparable":
        if outcome.reason == NO_BASELINE:
            return Judgement(recipe, check, outcome, "new", outcome.reason, place)
        return Judgement(recipe, check, outcome, _unjudged(check), outcome.reason, place)
    if _could_show_nothing(outcome):
        why = verdicts.detectable_text(outcome)
        return Judgement(recipe, check, outcome, _unjudged(check), why, place)
    return Judgement(recipe, check, outcome, "passed", _passed(outcome), place)


def _could_show_nothing(outcome: Outcome) -> bool:
    """Whether no outcome of so few samples could have failed.  Equal samples need no test."""
    tested = outcome.verdict == comparison.NO_DIFFERENCE and outcome.p_value is not None
    return tested and outcome.detectable is None and not _is_same(outcome)


def _is_same(outcome: Outcome) -> bool:
    interval = outcome.interval
    return interval is not None and interval.low == interval.high


def _passed(outcome: Outcome) -> str:
    if outcome.verdict in ("worse", "slower"):
        return f"{outcome.verdict}, within what the policy lets through"
    if outcome.verdict != comparison.NO_DIFFERENCE:
        return ""
    if outcome.p_value is None:
        low = outcome.interval.low if outcome.interval else 0.0
        return f"{low:.3g}x of the baseline's speed is not excluded" if low < 1 else ""
    if _is_same(outcome):
        return "the same on every sample"
    return verdicts.detectable_text(outcome)


def _unjudged(check: Check) -> Status:
    return "unjudged" if check.unjudged == "fail" else "noted"


def _lacking(recipe: str, check: Check, ours: Record, baselines: Sequence[Kept]) -> list[Judgement]:
    """What only the newest baseline has measured."""
    newest = baselines[-1:]
    return [
        _judgement(recipe, check, outcome, kept.place)
        for kept in newest
        for outcome in comparison.lacking(
            measurements_of(ours), list(filter(_says_something, measurements_of(kept.record)))
        )
        if check.names_metric(outcome.name, outcome.metric)
    ]


def _says_something(m: Measurement) -> bool:
    """The speed of dequantized weights is no one's: nothing is missing without a verdict on it."""
    return m.metric != SPEEDUP or m.path != "simulated"


def _empty(policy: Policy, judged: Sequence[Judgement]) -> list[Judgement]:
    """A judgement for each check that is about nothing that any recipe measures."""
    used = {id(one.check) for one in judged}
    return [
        Judgement(
            "every recipe",
            check,
            _of_nothing(check),
            _unjudged(check),
            "no recipe of the policy measures this",
        )
        for check in policy.checks
        if id(check) not in used
    ]


def _of_nothing(check: Check) -> Outcome:
    name = " ".join(check.names)
    return Outcome(name=name, metric=check.metric, engine="", verdict="not comparable")


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
