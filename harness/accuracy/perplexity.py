"""Perplexity by the papers' protocol (GPTQ, SparseGPT, Wanda, SLiM share this code).

Join all documents with a blank line, tokenise once (the tokenizer's own special tokens, once, at
the very start), cut into non-overlapping windows of `seqlen` tokens, drop the tail.  A window's
loss is the mean over its `seqlen - 1` predicted tokens; perplexity is exp of the mean window
loss.  No window gets a BOS token of its own.

A perplexity that no float64 holds is missing from the record, with its reason; the losses are kept,
and comparisons are of losses.
"""

import logging
import math
import sys
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from torch import Tensor

from trinity.harness.accuracy.scoring import window_loss
from trinity.harness.engines import finite
from trinity.harness.engines.engine import Engine
from trinity.harness.records.facts import Data, Text
from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics import clusters, intervals
from trinity.harness.texts.corpora import BLANK_LINE, TextCorpus, Tokenizer, token_ids
from trinity.methods.errors import ConfigError

log = logging.getLogger(__name__)

LARGEST_LOSS = math.log(sys.float_info.max)  # 709.78 nats


def evaluate(
    engine: Engine,
    tokenizer: Tokenizer,
    corpus: TextCorpus,
    seqlen: int,
    windows: int | None = None,
    *,
    name: str | None = None,
    joiner: str = BLANK_LINE,
) -> Measurement:
    """Perplexity on the first `windows` windows (None: all); samples are the windows' losses.

    joiner: a blank line, except for the papers' C4 validation, which joins with a space
    """
    ids, details = windows_of(engine, tokenizer, corpus, seqlen, windows, joiner)
    losses = _losses(engine, ids, corpus.name)
    details |= {"arithmetic": "log-softmax float32, sums float64"}
    reason = _why_none(losses)
    value = None if reason else math.exp(math.fsum(losses) / len(losses))
    return Measurement(
        name=name or corpus.name,
        metric="perplexity",
        value=value,
        unit="1",
        higher_is_better=False,
        path=engine.path,
        engine=engine.name,
        interval=None if reason else intervals.perplexity_interval(losses),
        samples=losses if all(map(math.isfinite, losses)) else [],
        details=details,
        reason=reason,
    )


def _why_none(losses: list[float]) -> str | None:
    """Why there is no perplexity; None if there is one."""
    infinite = [number for number, loss in enumerate(losses, start=1) if math.isinf(loss)]
    if infinite:
        return (
            f"infinite: the model rules out a token of window {infinite[0]} of {len(losses)} "
            f"({len(infinite)} such windows)"
        )
    mean = math.fsum(losses) / len(losses)
    if mean > LARGEST_LOSS:
        return f"exp({mean:.1f}), more than a float64 holds (exp({LARGEST_LOSS:.1f}))"
    return None


def windows_of(
    engine: Engine,
    tokenizer: Tokenizer,
    corpus: TextCorpus,
    seqlen: int,
    windows: int | None,
    joiner: str = BLANK_LINE,
) -> tuple[Tensor, dict[str, Any]]:
    """The protocol's windows, int64 [windows, seqlen], and what a record says of them."""
    if not 2 <= seqlen <= engine.max_length:
        msg = (
            f"windows of {corpus.name}: seqlen is {seqlen}, and this model reads 2 to "
            f"{engine.max_length} tokens. Set seqlen within that range; numbers of different "
            "seqlen cannot be compared."
        )
        raise ConfigError(msg)
    ids = _ids(tokenizer, corpus.documents, joiner)
    total = len(ids) // seqlen
    used = total if windows is None else min(windows, total)
    if used < 1:
        msg = (
            f"windows of {corpus.name}: {len(ids)} tokens and windows={windows} leave no window "
            f"of {seqlen} tokens. Lower seqlen or ask for at least one window."
        )
        raise ConfigError(msg)
    alike, by = _clusters(tokenizer, corpus.documents, joiner, seqlen, used)
    text = Text(
        corpus=corpus.name,
        split=corpus.split,
        joined_with=joiner,
        tokens=len(ids),
        seqlen=seqlen,
        stride=seqlen,
        windows=used,
        windows_available=total,
        clusters=alike,
        clustered_by=by,
    )
    first = tokenizer.bos_token_id is not None and int(ids[0]) == tokenizer.bos_token_id
    said = {"bos_at_start_of_text": first, "bos_in_every_window": False}
    read = Data(source=corpus.source, sha256=corpus.sha256)
    return ids[: used * seqlen].reshape(used, seqlen), text.details() | read.details() | said


# Both are asked again by every suite on a text, for every row of a table.
@lru_cache(maxsize=4)
def _ids(tokenizer: Tokenizer, documents: tuple[str, ...], joiner: str) -> Tensor:
    """The whole text, int64 [tokens], not to be changed."""
    return token_ids(tokenizer, joiner.join(documents))


@lru_cache(maxsize=8)
def _clusters(
    tokenizer: Tokenizer, documents: tuple[str, ...], joiner: str, seqlen: int, windows: int
) -> tuple[list[int], str]:
    """See `clusters.of_windows`."""
    return clusters.of_windows(_lengths(tokenizer, documents, joiner), seqlen, windows)


def _lengths(tokenizer: Tokenizer, documents: tuple[str, ...], joiner: str) -> Iterator[int]:
    """Tokens of each document with what joins it to the next, to within one or two each."""
    for document in documents:
        text = document + joiner
        yield len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _losses(engine: Engine, windows: Tensor, name: str) -> list[float]:
    """windows: int64 [windows, seqlen]  ->  mean negative log-likelihood of each"""
    losses: list[float] = []
    for number, window in enumerate(windows, start=1):
        with finite.said_of(f"perplexity on {name}, window {number} of {len(windows)}"):
            losses.append(window_loss(engine, window))
        log.info("%s: window %d of %d", name, number, len(windows))
    return losses
