"""Perplexity by the papers' protocol (GPTQ, SparseGPT, Wanda, SLiM share this code).

Join all documents with a blank line, tokenise once (the tokenizer's own special tokens, once, at
the very start), cut into non-overlapping windows of `seqlen` tokens, drop the tail.  A window's
loss is the mean over its `seqlen - 1` predicted tokens; perplexity is exp of the mean window
loss.  No window gets a BOS token of its own.
"""

import logging
import math
from typing import Any

from torch import Tensor

from trinity.harness import statistics
from trinity.harness.accuracy.scoring import window_loss
from trinity.harness.data import TextCorpus, Tokenizer, token_ids
from trinity.harness.engine import Engine
from trinity.harness.records.measurement import Measurement
from trinity.methods.errors import ConfigError

log = logging.getLogger(__name__)

BLANK_LINE = "\n\n"


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
    return Measurement(
        name=name or corpus.name,
        metric="perplexity",
        value=math.exp(math.fsum(losses) / len(losses)),
        unit="1",
        higher_is_better=False,
        path=engine.path,
        engine=engine.name,
        interval=statistics.perplexity_interval(losses),
        samples=losses,
        details=details,
    )


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
    ids = token_ids(tokenizer, joiner.join(corpus.documents))
    total = len(ids) // seqlen
    used = total if windows is None else min(windows, total)
    if used < 1:
        msg = (
            f"windows of {corpus.name}: {len(ids)} tokens and windows={windows} leave no window "
            f"of {seqlen} tokens. Lower seqlen or ask for at least one window."
        )
        raise ConfigError(msg)
    details = {
        "corpus": corpus.name,
        "split": corpus.split,
        "source": corpus.source,
        "sha256": corpus.sha256,
        "joined_with": joiner,
        "tokens": len(ids),
        "seqlen": seqlen,
        "stride": seqlen,
        "windows": used,
        "windows_available": total,
        "bos_at_start_of_text": tokenizer.bos_token_id is not None
        and int(ids[0]) == tokenizer.bos_token_id,
        "bos_in_every_window": False,
    }
    return ids[: used * seqlen].reshape(used, seqlen), details


def _losses(engine: Engine, windows: Tensor, name: str) -> list[float]:
    """windows: int64 [windows, seqlen]  ->  mean negative log-likelihood of each"""
    losses: list[float] = []
    for number, window in enumerate(windows, start=1):
        losses.append(window_loss(engine, window))
        if not math.isfinite(losses[-1]):
            msg = (
                f"perplexity on {name}: the loss of window {number} of {len(windows)} is "
                f"{losses[-1]}. The model's logits hold NaN or infinity: check the compressed "
                "layers, or use a wider dtype."
            )
            raise ConfigError(msg)
        log.info("%s: window %d of %d", name, number, len(windows))
    return losses
