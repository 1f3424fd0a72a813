"""Questions that a run answers otherwise than the dense model: which, and how sure each was."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from trinity.harness.figures.figure import significant
from trinity.harness.figures.shown import Shown, key_of
from trinity.harness.records.facts import Questions
from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics import comparison


@dataclass(frozen=True)
class Flip:
    """A question that exactly one of the two got right.

    example: its place in the task, from 0   dense, ours: the answer chosen, from 0
    dense_margin, ours_margin: log-likelihood of the chosen answer over the next, in nats
    right: 'dense' or 'ours'   text: of the question; empty where it is not asked for or at hand
    """

    task: str
    example: int
    dense: int | None
    ours: int | None
    dense_margin: float | None
    ours_margin: float | None
    right: str
    text: str


def no_texts(_: Measurement) -> Mapping[int, str]:
    """Questions are other people's data: a page that is published leaves them out."""
    return {}


def flips(run: Shown, texts: Callable[[Measurement], Mapping[int, str]] = no_texts) -> list[Flip]:
    """In the order of tasks and questions; nothing where the samples are no pairs.

    texts: gives the questions of a measurement by their number
    """
    if run.dense is None:
        return []
    found: list[Flip] = []
    for m in run.record.measurements:
        other = run.dense.find(key_of(m))
        if m.metric != "acc" or Questions.of(m).examples is None or other is None:
            continue
        if len(m.samples) == len(other.samples) and not comparison.mismatch(m, other):
            found += _of_task(m, other, texts(m))
    return found


def _of_task(ours: Measurement, dense: Measurement, texts: Mapping[int, str]) -> Iterator[Flip]:
    for index, (one, two) in enumerate(zip(ours.samples, dense.samples, strict=True)):
        if one == two:
            continue
        yield Flip(
            task=ours.name,
            example=index,
            dense=_answer(dense, index),
            ours=_answer(ours, index),
            dense_margin=_margin(dense, index),
            ours_margin=_margin(ours, index),
            right="ours" if one > two else "dense",
            text=texts.get(index, ""),
        )


def _answer(m: Measurement, index: int) -> int | None:
    answers = Questions.of(m).answers
    return answers[index] if answers else None


def _margin(m: Measurement, index: int) -> float | None:
    """How much likelier the chosen answer is than the next."""
    found = Questions.of(m).log_likelihoods
    known = sorted((x for x in found[index] if x is not None), reverse=True) if found else []
    return significant(known[0] - known[1], 3) if len(known) > 1 else None
