"""The smallest tokenizer and engine there are: bytes, and a table of bigrams; and a machine that is
measured in no time.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trinity.harness.records.measurement import MeasurementPath

VOCAB = 256
# Names of `ceilings`: what the machine can do at most is measured on a few bytes.
CEILINGS: dict[str, Any] = {"_BUFFER": 1 << 16, "_SIDES": (4, 8), "_LEAST_S": 0.0}


class ByteTokenizer:
    """One token a byte; optionally byte 1 as BOS in front, as Llama's tokenizers do."""

    eos_token_id: int | None = 0

    def __init__(self, *, bos: bool = False) -> None:
        self.bos_token_id: int | None = 1 if bos else None

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> Any:
        front = [] if self.bos_token_id is None or not add_special_tokens else [self.bos_token_id]
        return {"input_ids": front + list(text.encode())}

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        kept = [token for token in token_ids if not (skip_special_tokens and token < 2)]
        return bytes(kept).decode(errors="replace")


class BigramEngine:
    """Logits that depend on the last token only, so that likelihoods can be summed by hand."""

    name = "bigram"
    path: MeasurementPath = "reference"

    def __init__(self, table: Tensor | None = None, max_length: int = 512) -> None:
        """table: float32 [vocab, vocab], random if None"""
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(VOCAB, VOCAB, generator=generator) if table is None else table
        self.max_length = max_length
        self.read: list[list[int]] = []

    def logits(self, ids: Tensor) -> Tensor:
        self.read.append(ids.tolist())
        return self.table[ids]

    def session(self) -> "BigramSession":
        return BigramSession(self)


class BigramSession:
    def __init__(self, engine: BigramEngine) -> None:
        self.engine = engine

    def prefill(self, ids: Tensor) -> Tensor:
        return torch.stack([self.engine.logits(sequence)[-1] for sequence in ids])

    def step(self, tokens: Tensor) -> Tensor:
        return self.prefill(tokens[:, None])


def saying(text: str) -> Tensor:
    """Logits whose most likely bytes spell `text`, of distinct bytes.  ->  [vocab, vocab]"""
    table = torch.zeros(VOCAB, VOCAB)
    codes = text.encode()
    for before, after in pairwise(codes):
        table[before, after] = 10.0
    return table
