"""Log-likelihoods from logits: float32 log-softmax, float64 sums, one sequence at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trinity.harness.engine import Engine
from trinity.methods.errors import ConfigError

_ROWS = 256  # rows of logits turned to log-probabilities at once: 50 MB at a vocabulary of 49152


@dataclass(frozen=True)
class Score:
    """How likely a continuation is, and whether greedy decoding would have produced it."""

    log_likelihood: float
    greedy: bool


def window_loss(engine: Engine, ids: Tensor) -> float:
    """Mean negative log-likelihood of the last `seq - 1` tokens.  ids: int64 [seq]"""
    logits = engine.logits(ids)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(ids) - 1, _ROWS):
        stop = min(start + _ROWS, len(ids) - 1)
        total += token_log_likelihoods(logits[start:stop], ids[start + 1 : stop + 1]).sum()
    return -float(total) / (len(ids) - 1)


def continuation_scores(
    engine: Engine, inputs: Tensor, continuations: Sequence[Sequence[int]]
) -> list[Score]:
    """Score continuations that share their model input, with one forward.

    inputs: int64 [seq], the context and all but the last token of the continuations
    continuations: each one's tokens; its last `n` predictions are read from the last `n` positions
    """
    logits = engine.logits(inputs)
    scores: list[Score] = []
    for continuation in continuations:
        targets = torch.tensor(continuation, dtype=torch.int64)
        if not 0 < len(targets) <= len(logits):
            msg = (
                f"a continuation of {len(targets)} tokens does not fit the {len(logits)} positions "
                f"that the model reads at most ({engine.max_length}): shorten the example or use a "
                "model with a longer context."
            )
            raise ConfigError(msg)
        rows = logits[len(logits) - len(targets) :]
        likelihood = token_log_likelihoods(rows, targets).sum()
        greedy = bool((rows.argmax(dim=-1).cpu() == targets).all())
        scores.append(Score(float(likelihood), greedy))
    return scores


def token_log_likelihoods(logits: Tensor, targets: Tensor) -> Tensor:
    """logits: float [seq, vocab]  targets: int64 [seq]  ->  float64 [seq], on the CPU"""
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    chosen = log_probabilities.gather(1, targets.to(logits.device)[:, None])[:, 0]
    return chosen.cpu().double()


def evenly_spaced(total: int, limit: int | None) -> list[int]:
    """Indices of `limit` of `total` examples spread over all of them (None: every one)."""
    used = total if limit is None else min(limit, total)
    return [number * total // used for number in range(used)]
