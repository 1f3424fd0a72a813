"""Which questions two models answer otherwise, with the text of each where it is at hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trinity.harness.records.facts import AVERAGE, EVENLY_SPACED, Data, Questions, Text
from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics import comparison

_LONGEST = 300  # characters of a question that are shown


@dataclass(frozen=True)
class Flip:
    """One question.  index: among those that were asked   right: whether ours is

    text: the question; empty where it is not at hand
    """

    name: str
    engine: str
    index: int
    right: bool
    text: str


def of(ours: Sequence[Measurement], baseline: Sequence[Measurement]) -> list[Flip]:
    """Every question that exactly one of the two got right, those that became wrong first."""
    found = []
    for pair in comparison.pairs(ours, baseline):
        m, other = pair.ours, pair.baseline
        if pair.tested is None or other is None or not _is_answers(m, other):
            continue
        flipped = [i for i, x in enumerate(m.samples) if x != other.samples[i]]
        known = texts(m) if flipped else {}
        found += [Flip(m.name, m.engine, i, bool(m.samples[i]), known.get(i, "")) for i in flipped]
    return sorted(found, key=lambda flip: flip.right)


def _is_answers(m: Measurement, other: Measurement) -> bool:
    return m.metric == "acc" and m.name != AVERAGE and bool(other.samples)


def texts(m: Measurement) -> Mapping[int, str]:
    """The questions of a measurement by their number; none if this machine has other data."""
    # Imported here: two records without flips are compared without any data.
    from trinity.harness.accuracy import task_data
    from trinity.harness.accuracy.scoring import evenly_spaced

    if m.name not in task_data.TASKS:
        return _sentences(m)
    local = task_data.read(m.name)
    if local is None or local.source.get("sha256") != Data.of(m).sha256:
        return {}
    asked = list(range(len(local.rows)))[: len(m.samples)]
    if Questions.of(m).examples_chosen == EVENLY_SPACED:
        asked = evenly_spaced(len(local.rows), len(m.samples))
    return {number: _readable(local.rows[row]) for number, row in enumerate(asked)}


def _sentences(m: Measurement) -> Mapping[int, str]:
    """Those of a suite that asks for the last word of sentences of a text."""
    # Imported here: it loads torch.
    from trinity.harness.accuracy import last_word
    from trinity.harness.accuracy.scoring import evenly_spaced
    from trinity.harness.terminal.progress import Reporter
    from trinity.harness.texts import corpora

    text = Text.of(m)
    if text.corpus is None or text.split is None or corpora.at_hand(text.corpus, text.split):
        return {}
    corpus = corpora.load(text.corpus, text.split, Reporter(quiet=True))
    if corpus.sha256 != Data.of(m).sha256:
        return {}
    sentences = last_word.examples(corpus)
    chosen = evenly_spaced(len(sentences), len(m.samples))
    return {
        number: f"{sentences[index].context} [{sentences[index].word}]"[-_LONGEST:]
        for number, index in enumerate(chosen)
    }


def _readable(row: Mapping[str, Any]) -> str:
    """What of a row is text, in its order, on one line."""
    words: list[str] = []
    for value in row.values():
        if isinstance(value, str):
            words.append(value)
        elif isinstance(value, Mapping):
            words += [f"({x})" for x in value.get("text", []) if isinstance(x, str)]
        elif isinstance(value, list):
            words += [f"({x})" for x in value if isinstance(x, str)]
    text = " ".join(" ".join(words).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
