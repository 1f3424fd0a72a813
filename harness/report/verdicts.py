"""What a table may say of each cell: against the dense row beside it, and against the paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trinity.harness.recipes.paper import Profile, Protocol, Row, Table, printed
from trinity.harness.records.facts import AVERAGE, Average, Questions, Text
from trinity.harness.records.measurement import Measurement
from trinity.harness.records.record import Record
from trinity.harness.statistics import comparison
from trinity.harness.statistics.comparison import Outcome

ACCURACY = ("perplexity", "acc", "kl", "top1_agreement", "flip_rate")

Key = tuple[int, str, str, str]  # cell, name, metric, engine


@dataclass(frozen=True)
class Published:
    """A published number and what may be said of ours against it.

    value: of our model, or else of the table's reference model, which is not comparable
    word: 'reproduced' if the published value, as it is rounded, lies in our 95% interval
    reason: of 'not comparable': which of model, seqlen, tasks, task version, examples is another
    """

    value: float | None
    word: Literal["reproduced", "differs", "not comparable", "not measured"]
    reason: str = ""

    @property
    def text(self) -> str:
        """'differs', 'not comparable (other model)'."""
        return f"{self.word} ({self.reason})" if self.reason else self.word


def accuracy_measurements(record: Record) -> list[Measurement]:
    """What says how good the model is: everything that was not timed or weighed."""
    return [m for m in record.measurements if m.metric in ACCURACY]


def against_dense(records: Sequence[Record], baseline: int | None) -> dict[Key, Outcome]:
    """Every accuracy cell of a table against the dense row's, Holm-corrected over the table.

    baseline: index of the dense row; without one there is nothing to compare with
    """
    if baseline is None:
        return {}
    keys: list[Key] = []
    found: list[comparison.Pair] = []
    dense = accuracy_measurements(records[baseline])
    for index, record in enumerate(records):
        if index == baseline:
            continue
        ours = accuracy_measurements(record)
        keys += [(index, m.name, m.metric, m.engine) for m in ours]
        found += comparison.pairs(ours, dense)
    return dict(zip(keys, comparison.judge(found), strict=True))


def against_paper(
    measurement: Measurement | None,
    table: Table,
    row: Row,
    pattern: str | None,
    profile: Profile,
    record: Record,
) -> Published:
    """One cell against the paper's number for it."""
    name = measurement.name if measurement else AVERAGE
    model = profile.published_names.get(record.model.id)
    value = printed(table, row, pattern, model, name) if model else None
    if value is None:
        reason = _why_none(table, row, pattern, name, model)
        beside = None
        if model is None and table.reference:
            beside = printed(table, row, pattern, table.reference, name)
        return Published(float(beside) if beside else None, "not comparable", reason)
    return judge(measurement, value, table.protocol)


def judge(measurement: Measurement | None, value: str | float, protocol: Protocol) -> Published:
    """value: as printed; percent for accuracy.  Its last digit says how far it was rounded."""
    number = float(value)
    if measurement is None or measurement.value is None:
        return Published(number, "not measured")
    differing = other_protocol(measurement, protocol)
    if differing:
        return Published(number, "not comparable", f"other {', '.join(differing)}")
    if measurement.interval is None:
        return Published(number, "not measured", "no interval: fewer than two samples")
    factor = 100 if measurement.metric == "acc" else 1
    half = 0.5 * 10.0 ** -len(str(value).partition(".")[2])
    low, high = factor * measurement.interval.low - half, factor * measurement.interval.high + half
    return Published(number, "reproduced" if low <= number <= high else "differs")


def other_protocol(measurement: Measurement, protocol: Protocol) -> list[str]:
    """What was measured in another way than the paper did, in words.

    A part that the paper does not state is not compared.
    """
    text, of = Text.of(measurement), Average.of(measurement)
    differing = []
    if measurement.metric == "perplexity":
        if protocol.seqlen and text.seqlen != protocol.seqlen:
            differing.append(f"seqlen, {protocol.seqlen} there")
        if text.windows != text.windows_available:
            differing.append("number of windows, all there")
    is_average, tasks = measurement.name == AVERAGE, set(of.tasks or ())
    if is_average and protocol.tasks and tasks != set(protocol.tasks):
        differing.append(f"tasks, {len(protocol.tasks)} there")
    if _examples_left_out(measurement):
        differing.append("number of examples, all there")
    wanted = protocol.task_versions.get(measurement.name)
    if wanted is not None and str(Questions.of(measurement).task_version) != wanted:
        differing.append(f"task version, {wanted} there")
    return differing


def _examples_left_out(measurement: Measurement) -> bool:
    """Whether a task, or an average, is over fewer examples than there are: by a limit, or because
    a local file holds fewer.  Older records do not say how many were published.
    """
    of, asked = Average.of(measurement), Questions.of(measurement)
    if of.questions != of.questions_published:
        return True
    whole = asked.examples_published or asked.examples_available
    return asked.examples is not None and asked.examples != whole


def _why_none(table: Table, row: Row, pattern: str | None, name: str, model: str | None) -> str:
    if model is None and printed(table, row, pattern, None, name) is not None:
        return "other model"
    return "no published value"


def outcome_text(outcome: Outcome | None) -> str:
    """'13.6x, worse (p < 0.001)', 'no difference shown (could show 8.1 points)'."""
    if outcome is None:
        return ""
    if outcome.verdict == "not comparable":
        return f"not comparable ({outcome.reason})"
    effect = ""
    if outcome.effect is not None:
        points = f"{100 * outcome.effect:+.1f}" if outcome.unit_is_points else None
        effect = points or _number(outcome)
    if outcome.verdict == comparison.NO_DIFFERENCE:
        said = f"{outcome.verdict} ({detectable_text(outcome)})"
    else:
        said = f"{outcome.verdict} ({p_text(outcome.p_adjusted)})"
    return ", ".join(filter(None, (effect, said)))


def detectable_text(outcome: Outcome) -> str:
    """What the test could have shown, in the unit of the effect."""
    least = outcome.detectable
    if least is None:
        return "too few samples to show any"
    if outcome.unit_is_points:
        return f"could show {100 * least:.1f}"
    return f"could show {least:.3g}{'x' if outcome.kind == 'ratio' else ''}"


def p_text(p_value: float | None) -> str:
    """'p = 0.012', 'p < 0.001'."""
    if p_value is None:
        return "no test"
    return f"p = {p_value:.2g}" if p_value >= 0.001 else "p < 0.001"


def _number(outcome: Outcome) -> str:
    assert outcome.effect is not None
    if outcome.kind == "difference":
        return f"{outcome.effect:+.3g}"
    return f"{outcome.effect:,.0f}x" if outcome.effect >= 1000 else f"{outcome.effect:.3g}x"


def dense_row(rows: Sequence[Row]) -> int | None:
    """Index of the row that compresses nothing."""
    return next((index for index, row in enumerate(rows) if row.is_dense), None)
