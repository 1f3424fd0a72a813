"""Last-word prediction on held-out pydoc text, for machines with no task data (`pydoc-last-word`).

After LAMBADA (Paperno et al., arXiv:1606.06031) in form only: the model reads a paragraph up to
the last word of one of its sentences, and is right if greedy decoding yields that word's tokens.
Unlike LAMBADA, nobody checked that the context is needed to guess the word, and a paragraph gives
as many examples as it has sentences.  As in lm-eval's `lambada_openai`, whether the model would
go on and lengthen the word is not asked.
"""

import re
import textwrap
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from trinity.harness.accuracy.scoring import continuation_scores, evenly_spaced
from trinity.harness.engines import finite
from trinity.harness.engines.engine import Engine
from trinity.harness.records.facts import EVENLY_SPACED, Data, Questions, Text
from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics import intervals
from trinity.harness.texts.corpora import TextCorpus, Tokenizer, appended, token_ids
from trinity.harness.texts.pydoc_text import paragraphs
from trinity.methods.errors import ConfigError

_SHORTEST_CONTEXT = 12  # words
_SENTENCE_END = re.compile(r" (?P<word>[A-Za-z]{3,})\.(?= [A-Z\"*]|$)")
_NOT_PROSE = re.compile(
    r"[^A-Za-z\"(]"
)  # a line that starts otherwise is code, grammar, a list or markup


@dataclass(frozen=True)
class Example:
    """A paragraph up to a sentence's last word (and without the space before it), and that word."""

    context: str
    word: str


def examples(corpus: TextCorpus) -> list[Example]:
    """Every prose sentence that ends in a plain word and a full stop, line breaks undone."""
    found: list[Example] = []
    for document in corpus.documents:
        for block in paragraphs(document):
            lines = textwrap.dedent(block).splitlines()
            if any(_NOT_PROSE.match(line) for line in lines):
                continue
            prose = " ".join(block.split())
            for end in _SENTENCE_END.finditer(prose):
                context = prose[: end.start()]
                if len(context.split()) >= _SHORTEST_CONTEXT:
                    found.append(Example(context, end["word"]))
    return found


def split(tokenizer: Tokenizer, example: Example, tail: int) -> tuple[list[int], list[int]]:
    """Tokens of context and word together, and those of them that the context alone lacks.

    tail: how many special tokens the tokenizer appends; they are no part of a text that goes on
    """
    context, whole = (
        token_ids(tokenizer, text).tolist()
        for text in (example.context, f"{example.context} {example.word}")
    )
    context, whole = context[: len(context) - tail], whole[: len(whole) - tail]
    # The word may change the last token of the context; what changes is asked for with the word.
    common = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(context, whole, strict=False))
    )
    return whole, whole[common:]


def evaluate(
    engine: Engine,
    tokenizer: Tokenizer,
    corpus: TextCorpus,
    limit: int | None = None,
    *,
    name: str = "pydoc-last-word",
) -> Measurement:
    """Accuracy over `limit` evenly spaced examples (None: all); samples are 1 or 0 each."""
    available = examples(corpus)
    used = [available[index] for index in evenly_spaced(len(available), limit)]
    if not used:
        msg = (
            f"{name}: {corpus.name} ({corpus.split}) holds {len(available)} sentences that end in "
            f"a plain word, and limit is {limit}: nothing to measure. Raise limit or use another "
            "corpus."
        )
        raise ConfigError(msg)
    correct: list[float] = []
    truncated = 0
    tail = len(appended(tokenizer))
    for example in used:
        whole, word = split(tokenizer, example, tail)
        truncated += len(whole) - 1 > engine.max_length
        inputs = torch.tensor(whole[:-1][-engine.max_length :], dtype=torch.int64)
        with finite.said_of(f"{name}, the sentence that ends in '{example.word}'"):
            (score,) = continuation_scores(engine, inputs, [word])
        correct.append(float(score.greedy))
    right = round(sum(correct))
    return Measurement(
        name=name,
        metric="acc",
        value=right / len(correct),
        unit="1",
        higher_is_better=True,
        path=engine.path,
        engine=engine.name,
        interval=intervals.wilson_interval(right, len(correct)),
        samples=correct,
        details=_details(corpus, len(used), len(available), truncated),
    )


def _details(corpus: TextCorpus, used: int, available: int, truncated: int) -> dict[str, Any]:
    """used, available, truncated: examples"""
    asked = Questions(
        examples=used,
        examples_available=available,
        examples_chosen=EVENLY_SPACED,
        examples_truncated_on_the_left=truncated,
    )
    names = ("examples", "examples_available", "examples_chosen", "examples_truncated_on_the_left")
    said = {"right_if": "greedy tokens equal the word's tokens"}
    text = Text(corpus=corpus.name, split=corpus.split)
    read = Data(source=corpus.source, sha256=corpus.sha256)
    return text.details() | read.details() | asked.details(*names) | said
