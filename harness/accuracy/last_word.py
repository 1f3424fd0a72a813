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

import torch

from trinity.harness import statistics
from trinity.harness.accuracy.scoring import continuation_scores, evenly_spaced
from trinity.harness.data import TextCorpus, Tokenizer, token_ids
from trinity.harness.engine import Engine
from trinity.harness.pydoc_text import paragraphs
from trinity.harness.records.measurement import Measurement
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
    for example in used:
        context = token_ids(tokenizer, example.context).tolist()
        whole = token_ids(tokenizer, f"{example.context} {example.word}").tolist()
        truncated += len(whole) - 1 > engine.max_length
        inputs = torch.tensor(whole[:-1][-engine.max_length :], dtype=torch.int64)
        (score,) = continuation_scores(engine, inputs, [whole[len(context) :]])
        correct.append(float(score.greedy))
    right = round(sum(correct))
    details = {
        "corpus": corpus.name,
        "split": corpus.split,
        "source": corpus.source,
        "sha256": corpus.sha256,
        "examples": len(used),
        "examples_available": len(available),
        "examples_chosen": "evenly spaced",
        "examples_truncated_on_the_left": truncated,
        "right_if": "greedy tokens equal the word's tokens",
    }
    return Measurement(
        name=name,
        metric="acc",
        value=right / len(correct),
        unit="1",
        higher_is_better=True,
        path=engine.path,
        engine=engine.name,
        interval=statistics.wilson_interval(right, len(correct)),
        samples=correct,
        details=details,
    )
