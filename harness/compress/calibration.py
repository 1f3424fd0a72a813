"""Calibration windows, by the papers' rule or a second one that a recipe must ask for by name.

`documents`: SparseGPT, GPTQ, Wanda and SLiM on C4.  Seed Python's generator; for each sample draw
`randint(0, documents - 1)` until that document has strictly more than `seqlen` tokens, then take
`seqlen` tokens from `randint(0, tokens - seqlen - 1)`.  The calls are the same in number, order
and range as in the reference code, so one seed and one tokenizer give the same windows; here the
generator is local and the global one is left alone.

`concatenated`: the same code's rule for WikiText-2.  Join all documents with a blank line,
tokenise once, take each window from `randint(0, tokens - seqlen - 1)`.  For texts whose documents
are short.

Differs from the papers: they load the slow tokenizer (`use_fast=False`); the fast one is used here.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from trinity.harness.models.model_tokenizer import tokenizer_of
from trinity.harness.store.stages import write_json
from trinity.harness.texts.corpora import TextCorpus, Tokenizer, token_ids
from trinity.methods.errors import ConfigError

IDS, ABOUT = "ids.safetensors", "ids.json"
Rule = Literal["documents", "concatenated"]

# Smaller corpora are tokenised as a whole first; a C4 shard (356,317 documents) would take minutes.
_COUNTED_UP_FRONT = 10_000
_DRAWS_PER_SAMPLE = 2_000  # generous: documents of more than 2048 tokens are rare in C4


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """ids: int64 [samples, seqlen]; sha256 over their little-endian bytes."""

    ids: Tensor
    rule: Rule
    sha256: str


def write(
    folder: Path,
    *,
    corpus: TextCorpus,
    model: Path,
    samples: int,
    seqlen: int,
    seed: int,
    rule: Rule,
) -> None:
    """Fill a stage with the windows of a text.  model: the folder whose tokenizer cuts it"""
    drawn = sample(corpus, tokenizer_of(model), samples, seqlen, seed, rule)
    save_file({"ids": drawn.ids}, folder / IDS)
    write_json(folder / ABOUT, {"sha256": drawn.sha256})


def sample(
    corpus: TextCorpus,
    tokenizer: Tokenizer,
    samples: int,
    seqlen: int,
    seed: int,
    rule: Rule = "documents",
) -> CalibrationSet:
    """Draw `samples` windows of `seqlen` tokens; ConfigError if the corpus cannot fill them."""
    if samples < 1 or seqlen < 2:
        msg = (
            f"calibration: samples must be at least 1 and seqlen at least 2, found {samples} and "
            f"{seqlen}."
        )
        raise ConfigError(msg)
    draw = _draw_documents if rule == "documents" else _draw_concatenated
    ids = torch.stack(draw(corpus, tokenizer, samples, seqlen, Random(seed)))
    return CalibrationSet(
        ids, rule, hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest()
    )


def _draw_documents(
    corpus: TextCorpus, tokenizer: Tokenizer, samples: int, seqlen: int, rng: Random
) -> list[Tensor]:
    """int64 [seqlen], `samples` times."""
    documents = corpus.documents
    if len(documents) <= _COUNTED_UP_FRONT:
        encoded = {i: token_ids(tokenizer, text) for i, text in enumerate(documents)}
        long = sum(len(ids) > seqlen for ids in encoded.values())
        if long < samples:
            raise ConfigError(_too_few(corpus, samples, seqlen, f"{long} of its {len(documents)}"))
    else:
        encoded = {}
    windows: list[Tensor] = []
    draws = 0
    while len(windows) < samples:
        if draws == _DRAWS_PER_SAMPLE * samples:
            found = f"{len(windows)} of {draws} documents drawn from its {len(documents)}"
            raise ConfigError(_too_few(corpus, samples, seqlen, found))
        draws += 1
        index = rng.randint(0, len(documents) - 1)
        ids = encoded[index] if index in encoded else token_ids(tokenizer, documents[index])
        if len(ids) > seqlen:
            windows.append(_window(ids, seqlen, rng))
    return windows


def _draw_concatenated(
    corpus: TextCorpus, tokenizer: Tokenizer, samples: int, seqlen: int, rng: Random
) -> list[Tensor]:
    """int64 [seqlen], `samples` times."""
    ids = token_ids(tokenizer, "\n\n".join(corpus.documents))
    needed = max(samples * seqlen, seqlen + 1)
    if len(ids) < needed:
        msg = (
            f"calibration: {corpus.name} ({corpus.split}) has {len(ids)} tokens, and {samples} "
            f"samples of {seqlen} need {needed}: windows would repeat each other. Lower "
            f"calibration.samples or calibration.seqlen, or choose a larger calibration.dataset."
        )
        raise ConfigError(msg)
    return [_window(ids, seqlen, rng) for _ in range(samples)]


def _window(ids: Tensor, seqlen: int, rng: Random) -> Tensor:
    """ids: int64 [tokens], tokens > seqlen  ->  int64 [seqlen]"""
    start = rng.randint(0, len(ids) - seqlen - 1)
    return ids[start : start + seqlen]


def _too_few(corpus: TextCorpus, samples: int, seqlen: int, found: str) -> str:
    return (
        f"calibration: {corpus.name} ({corpus.split}) has {found} documents longer than {seqlen} "
        f"tokens, and rule 'documents' needs at least {samples}. Set calibration.rule to "
        "'concatenated' (which joins documents, unlike the papers' rule for C4), lower "
        "calibration.seqlen or calibration.samples, or use another dataset."
    )
