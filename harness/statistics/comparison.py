"""Two sets of measurements compared, sample by sample: differences, tests and verdict words.

The words for accuracy are `better`, `worse` and `no difference shown`, from an exact paired test
after Holm's correction over everything that is compared together.  Those for speed are `faster`,
`slower` and `no difference shown`, from the interval of the ratio and the measured noise floor.
`not comparable` names what differs.  See docs/statistics.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from trinity.harness.records.facts import (
    AVERAGE,
    LOSSES,
    AgainstDense,
    Average,
    Conditions,
    Data,
    Facts,
    OfSuite,
    Questions,
    Speedup,
    Text,
)
from trinity.harness.records.measurement import Interval, Measurement
from trinity.harness.statistics import intervals, paired

Verdict = Literal[
    "better", "worse", "no difference shown", "faster", "slower", "equal", "not comparable"
]
NO_DIFFERENCE: Verdict = "no difference shown"
SHARES = ("acc", "top1_agreement", "flip_rate")  # metrics that are read in percent

# What must be equal for samples to be pairs, and how a reader is told that it is not.
_SAME: Mapping[type[Facts], Mapping[str, str]] = {
    Text: {
        "corpus": "text",
        "split": "split",
        "joined_with": "joining of documents",
        "tokens": "tokenizer",
        "seqlen": "seqlen",
        "stride": "stride",
        "windows": "number of windows",
    },
    Questions: {
        "task_version": "task version",
        "num_fewshot": "number of shots",
        "lm_eval_key": "metric of lm-eval",
        "pooled": "pooling of subjects",
        "documents_sha256": "examples",
        "examples": "number of examples",
        "requests_truncated_on_the_left": "number of questions cut to the context",
        "examples_truncated_on_the_left": "number of sentences cut to the context",
    },
    Average: {"tasks": "tasks"},
}
_SAME_SPEED: Mapping[type[Facts], Mapping[str, str]] = {
    Conditions: {
        "cpu": "machine",
        "torch_threads": "threads",
        "batch": "batch",
        "prompt_tokens": "prompt",
        "new_tokens": "new tokens",
    },
    Speedup: {"baseline_engine": "engine of the baseline", "baseline_model": "baseline"},
}
SPEEDUP = "speedup"
TIMED = frozenset({"ttft_s", "tpot_s", "tokens_per_s", "seconds"})
SIZES = frozenset({"stored_bytes", "bits_per_weight"})


class Outcome(BaseModel):
    """What may be said of one measurement of ours against the baseline's.

    effect: ours / baseline (`kind` ratio) or ours - baseline (difference), with its interval; None
        where nothing was tested, or for a ratio beyond what a float64 holds
    p_value: of this comparison alone   p_adjusted: after Holm, over all that was compared together
    detectable: the least effect that the test would have found 4 times of 5 at the strictest level
        of the correction; in the unit of `effect`; None if too few samples can show anything
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    metric: str
    engine: str
    verdict: Verdict
    reason: str = ""
    ours: float | None = None
    baseline: float | None = None
    kind: Literal["ratio", "difference"] = "difference"
    effect: float | None = None
    interval: Interval | None = None
    samples: int = 0
    p_value: float | None = None
    p_adjusted: float | None = None
    test: str = ""
    detectable: float | None = None
    compared: int = 0

    @property
    def unit_is_points(self) -> bool:
        """Whether the effect is a difference of shares, which is read in percentage points."""
        return self.kind == "difference" and self.metric in SHARES


@dataclass(frozen=True, eq=False)
class Pair:
    """A measurement and its baseline, tested if their samples are pairs; else `reason` says why."""

    ours: Measurement
    baseline: Measurement | None
    tested: paired.Paired | None = None
    reason: str = ""


def pairs(ours: Sequence[Measurement], baseline: Sequence[Measurement]) -> list[Pair]:
    """Match measurements by name, metric and engine, and test those whose samples are pairs."""
    return pairs_of(ours, ours, baseline)


def pairs_of(
    wanted: Sequence[Measurement], ours: Sequence[Measurement], baseline: Sequence[Measurement]
) -> list[Pair]:
    """The same of some of ours; an average among them finds its tasks in all of ours."""
    return [_pair(m, _match(m, baseline), ours, baseline) for m in wanted]


def lacking(ours: Sequence[Measurement], baseline: Sequence[Measurement]) -> list[Outcome]:
    """What the baseline has measured and ours has not."""
    return [
        Outcome(
            name=m.name,
            metric=m.metric,
            engine=m.engine,
            verdict="not comparable",
            reason="only the baseline has such a measurement",
            baseline=m.value,
        )
        for m in baseline
        if _match(m, ours) is None
    ]


def judge(found: Sequence[Pair]) -> list[Outcome]:
    """Verdicts of all that is compared together: Holm's correction is over these."""
    tested = [pair.tested for pair in found if pair.tested]
    adjusted = iter(paired.holm([test.p_value for test in tested]))
    return [
        _tested(pair, pair.tested, next(adjusted), len(tested)) if pair.tested else _other(pair)
        for pair in found
    ]


def mismatch(ours: Measurement, baseline: Measurement) -> list[str]:
    """What differs between two measurements that would have to be equal, in a reader's words."""
    models = [AgainstDense.of(x).dense_model for x in (ours, baseline)]
    # Which model it is; the label's fingerprint changes with the code that compresses.
    known = {"baseline_model"} if all(models) else set()
    differing = [
        words
        for group, facts in (_SAME_SPEED if ours.metric == SPEEDUP else _SAME).items()
        for name, words in facts.items()
        if name not in known and getattr(group.of(ours), name) != getattr(group.of(baseline), name)
    ]
    # Older records do not say which dense model.
    differing += ["dense model"] * (len({*models} - {None}) > 1)
    # The documents' hash says more than that of the file that they came from, and the hub has none.
    read = Data.of(ours).sha256
    if read is not None and Questions.of(ours).documents_sha256 is None:
        differing += ["text"] * (read != Data.of(baseline).sha256)
    return list(dict.fromkeys(differing))


def _match(wanted: Measurement, among: Sequence[Measurement]) -> Measurement | None:
    """The measurement of the same thing; of another engine only where there is none of this one.

    Accuracy of a compiled model may be compared with that of a dense one in torch; times may not.
    """
    same = [m for m in among if (m.name, m.metric) == (wanted.name, wanted.metric)]
    suite = OfSuite.of(wanted)
    same = [m for m in same if OfSuite.of(m) == suite] or same
    exact = [m for m in same if m.engine == wanted.engine]
    if exact or wanted.metric in TIMED or wanted.metric == SPEEDUP:
        return exact[0] if exact else None
    return same[0] if same else None


def _pair(
    m: Measurement,
    other: Measurement | None,
    ours: Sequence[Measurement],
    baseline: Sequence[Measurement],
) -> Pair:
    if other is None:
        return Pair(m, other, reason="the baseline has no such measurement")
    # A perplexity too large for a number is missing, but its losses are compared all the same.
    lost = [x for x in (m, other) if x.value is None and not (x.metric == LOSSES and x.samples)]
    if lost:
        of = "" if lost[0] is m else "of the baseline, "
        return Pair(m, other, reason=f"{of}{lost[0].reason or 'not measured'}")
    if broken := next((x for x in (m, other) if not _is_finite(x)), None):
        of = "" if broken is m else "of the baseline, "
        return Pair(m, other, reason=f"{of}its value or samples hold NaN or infinity")
    if m.metric in TIMED:
        return Pair(m, other, reason="timed in different processes")
    if m.metric in SIZES:
        return Pair(m, other)
    differing = mismatch(m, other)
    if differing:
        return Pair(m, other, reason=f"other {', '.join(differing)}")
    if m.metric == SPEEDUP:
        return Pair(m, other, reason=_why_no_speed(m, other))
    strata = _strata(m, other, ours, baseline)
    if isinstance(strata, str):
        return Pair(m, other, reason=strata)
    return Pair(m, other, paired.compare(*strata, clusters=_clusters(m, other)))


def _strata(
    m: Measurement,
    other: Measurement,
    ours: Sequence[Measurement],
    baseline: Sequence[Measurement],
) -> tuple[list[list[float]], list[list[float]]] | str:
    """Samples of both: of the measurement itself, or of the tasks that an average is the mean of;
    else why they are no pairs.
    """
    if m.name != AVERAGE:
        if len(m.samples) != len(other.samples) or not m.samples:
            return _counted(m, other)
        return [m.samples], [other.samples]
    found: tuple[list[list[float]], list[list[float]]] = ([], [])
    for task in Average.of(m).tasks or ():
        one, two = _task(task, m, ours), _task(task, other, baseline)
        if one is None or two is None or len(one.samples) != len(two.samples) or not one.samples:
            return f"task {task} has no pairs"
        differing = mismatch(one, two)
        if differing:
            return f"task {task}: other {', '.join(differing)}"
        found[0].append(one.samples)
        found[1].append(two.samples)
    return found if found[0] else "an average that names no tasks"


def _clusters(m: Measurement, other: Measurement) -> Sequence[int] | None:
    """Which windows are alike; None of what is no text, and of older records that do not say."""
    clusters = Text.of(m).clusters or Text.of(other).clusters
    return clusters if clusters and len(clusters) == len(m.samples) else None


def _task(name: str, average: Measurement, among: Sequence[Measurement]) -> Measurement | None:
    """The task that an average is over: of its suite, where two suites have a task of that name."""
    wanted = (name, average.metric, average.engine, OfSuite.of(average))
    return next((x for x in among if (x.name, x.metric, x.engine, OfSuite.of(x)) == wanted), None)


def _why_no_speed(m: Measurement, other: Measurement) -> str:
    """Why nothing may be said of two speed-ups; empty if something may."""
    if min(len(m.samples), len(other.samples)) < 2:
        return _counted(m, other)
    if "simulated" in (m.path, other.path):
        return "dequantized weights say nothing of speed"
    unknown = [x for x in (m, other) if Speedup.of(x).noise_floor is None]
    return "no noise floor: too few repetitions" if unknown else ""


def _counted(m: Measurement, other: Measurement) -> str:
    return f"{len(m.samples)} and {len(other.samples)} samples"


def _is_finite(m: Measurement) -> bool:
    """Whether nothing of a measurement is NaN or infinite: no test says anything of those."""
    return all(map(math.isfinite, [*m.samples, *([] if m.value is None else [m.value])]))


def _tested(pair: Pair, test: paired.Paired, adjusted: float, compared: int) -> Outcome:
    m, other = pair.ours, pair.baseline
    assert other is not None
    ratio = m.metric == LOSSES
    verdict: Verdict = NO_DIFFERENCE
    if adjusted < paired.ALPHA:
        verdict = "better" if (test.difference > 0) == m.higher_is_better else "worse"
    least = test.detectable(paired.ALPHA / compared)
    interval = _exponential(test.interval) if ratio else test.interval
    return Outcome(
        name=m.name,
        metric=m.metric,
        engine=m.engine,
        verdict=verdict,
        ours=m.value,
        baseline=other.value,
        kind="ratio" if ratio else "difference",
        effect=_exp(test.difference) if ratio else test.difference,
        interval=interval,
        samples=sum(map(len, test.strata)),
        p_value=test.p_value,
        p_adjusted=adjusted,
        test=test.test,
        detectable=_exp(least) if ratio and least is not None else least,
        compared=compared,
    )


def _exp(log_ratio: float) -> float | None:
    """The ratio; None if no float64 holds it."""
    try:
        return math.exp(log_ratio)
    except OverflowError:
        return None


def _exponential(interval: Interval | None) -> Interval | None:
    """Of log ratios to that of ratios."""
    if interval is None:
        return None
    low, high = _exp(interval.low), _exp(interval.high)
    if low is None or high is None:
        return None
    return interval.model_copy(update={"low": low, "high": high})


def _other(pair: Pair) -> Outcome:
    """What needs no paired test: a size, two speed-ups, or nothing at all."""
    m, other = pair.ours, pair.baseline
    common: dict[str, Any] = {
        "name": m.name,
        "metric": m.metric,
        "engine": m.engine,
        "ours": m.value,
        "baseline": other.value if other else None,
    }
    if pair.reason or other is None or m.value is None or other.value is None:
        return Outcome(**common, verdict="not comparable", reason=pair.reason)
    if m.metric == SPEEDUP:
        return _speeds(m, other, common)
    better = (m.value > other.value) == m.higher_is_better
    verdict: Verdict = "equal" if m.value == other.value else "better" if better else "worse"
    effect = m.value / other.value if other.value else None
    return Outcome(**common, verdict=verdict, kind="ratio", effect=effect, test="exact count")


def _speeds(m: Measurement, other: Measurement, common: dict[str, Any]) -> Outcome:
    """Two speed-ups over one baseline, each timed against it in a process of its own."""
    interval = intervals.unpaired_ratio(m.samples, other.samples)
    floor = sum(Speedup.of(x).noise_floor or 0.0 for x in (m, other))
    assert m.value is not None
    assert other.value is not None
    return Outcome(
        **common,
        verdict=speed_verdict(interval, floor),
        kind="ratio",
        effect=m.value / other.value,
        interval=interval,
        samples=len(m.samples) + len(other.samples),
        test=f"interval of the ratio of speed-ups beyond both noise floors ({100 * floor:.1f} %)",
    )


def speed_verdict(
    interval: Interval | None, noise_floor: float
) -> Literal["faster", "slower", "no difference shown"]:
    """The word for a speed-up (above 1 is faster), from its interval and the noise floor only.

    noise_floor: the largest |log ratio| that timing one thing against itself gave
    """
    if interval is None or interval.low <= 0:
        return "no difference shown"
    if math.log(interval.low) > noise_floor:
        return "faster"
    return "slower" if math.log(interval.high) < -noise_floor else "no difference shown"
