"""Closeness to the dense model: no labels, so small differences show that accuracy cannot resolve.

On text: the mean Kullback-Leibler divergence of next-token distributions, KL(dense || compressed)
in nats, and how often both have the same likeliest token, on the windows that perplexity is
measured on.  Rows of a table that one process makes share the dense logits as far as they fit into
its memory; they are not stored (a window of 2048 positions has 400 MB at a vocabulary of 49152).

On tasks: the share of questions that are answered otherwise than by the dense model, from the
answers that both runs kept; the dense run's come from the stage store.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trinity.harness.accuracy import perplexity
from trinity.harness.engines import finite
from trinity.harness.engines.engine import Engine
from trinity.harness.records.facts import OfSuite, Questions
from trinity.harness.records.measurement import Measurement
from trinity.harness.statistics import intervals
from trinity.harness.statistics.comparison import mismatch
from trinity.harness.texts.corpora import BLANK_LINE, TextCorpus, Tokenizer
from trinity.methods.errors import ConfigError

log = logging.getLogger(__name__)

# What flips keep of the tasks that they are about.
_OF_TASKS = (
    *("examples", "examples_available", "task_version", "num_fewshot", "lm_eval_version"),
    "documents_sha256",
)
# Positions whose distributions are compared at once: few enough that what lies between stays in a
# cache, 1.6 MB a tensor at a vocabulary of 49152.
_ROWS = 8


def evaluate(
    engine: Engine,
    dense: Engine,
    tokenizer: Tokenizer,
    corpus: TextCorpus,
    seqlen: int,
    windows: int | None = None,
    *,
    name: str | None = None,
    joiner: str = BLANK_LINE,
) -> list[Measurement]:
    """`kl` and `top1_agreement` over all positions of the first `windows` windows (None: all).

    dense: the model before compression.  Samples are the windows' means.
    """
    ids, details = perplexity.windows_of(engine, tokenizer, corpus, seqlen, windows, joiner)
    divergences: list[float] = []
    agreements: list[float] = []
    for number, window in enumerate(ids, start=1):
        what = f"fidelity on {corpus.name}, window {number} of {len(ids)}"
        with finite.said_of(f"{what}, the dense model"):
            expected = finite.logits(dense, window)
        with finite.said_of(what):
            divergence, agreement = compare(expected, finite.logits(engine, window))
        divergences.append(divergence)
        agreements.append(agreement)
        log.info("fidelity on %s: window %d of %d", corpus.name, number, len(ids))
    details |= {
        "against": f"the dense model in {dense.name}, {dense.path}",
        "positions": ids.numel(),
        "arithmetic": "terms and their sums over the vocabulary float32, the rest float64",
    }
    name = name or f"fidelity-{corpus.name}"
    return [
        _mean(engine, name, "kl", "nats/token", divergences, False, details),
        _mean(engine, name, "top1_agreement", "1", agreements, True, details),
    ]


def compare(dense: Tensor, compressed: Tensor) -> tuple[float, float]:
    """Mean KL(dense || compressed) in nats, and the share of positions with one likeliest token.

    dense, compressed: float [positions, vocab]
    """
    if dense.shape != compressed.shape:
        msg = (
            f"fidelity: the dense model's logits are {tuple(dense.shape)} and the compressed "
            f"model's {tuple(compressed.shape)}: these are not the same model."
        )
        raise ConfigError(msg)
    total = torch.zeros((), dtype=torch.float64)
    same = 0
    for start in range(0, len(dense), _ROWS):
        x = dense[start : start + _ROWS].float().cpu()
        y = compressed[start : start + _ROWS].float().cpu()
        # With p = softmax(x) and q = softmax(y), KL = sum p (x - y) - log sum e^x + log sum e^y.
        first, largest = _largest(x)
        other, largest_of_other = _largest(y)
        share = (x - largest).exp_()
        # A token that the dense model rules out adds nothing: the limit of p log p at 0. So does
        # one whose probability no float32 holds, also where the other rules it out (0 * inf).
        terms = torch.where(share == 0, 0.0, (x - y).mul_(share)).sum(dim=-1).double()
        norm = share.sum(dim=-1).double()
        norm_of_other = (y - largest_of_other).exp_().sum(dim=-1).double()
        shift = (largest - largest_of_other).squeeze(-1).double()
        total += (terms / norm - shift - norm.log() + norm_of_other.log()).sum()
        same += int((first == other).sum())
    return float(total) / len(dense), same / len(dense)


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Which token is the likeliest, int64 [rows], and its logit, [rows, 1].  logits: [rows, vocab]

    NumPy searches many entries at once where torch looks at one after the other: 10 times faster.
    """
    which = torch.from_numpy(logits.numpy().argmax(axis=-1))
    return which, logits.gather(-1, which.unsqueeze(-1))


def flips(
    ours: Sequence[Measurement], dense: Sequence[Measurement], name: str
) -> list[Measurement]:
    """`flip_rate` of each task; samples are 1 where the answer is another than the dense model's.

    ours, dense: measurements of one suite of tasks on the same examples
    """
    found = []
    for m in ours:
        asked = Questions.of(m)
        if asked.answers is None:
            continue
        other = next((d for d in dense if (d.name, d.metric) == (m.name, m.metric)), None)
        differing = mismatch(m, other) if other else ["tasks"]
        if other is None or differing:
            msg = f"{name}: {m.name} was measured with other {', '.join(differing)} for the dense."
            raise ConfigError(msg)
        theirs = Questions.of(other).answers or ()
        samples = [float(a != b) for a, b in zip(asked.answers, theirs, strict=True)]
        found.append(
            Measurement(
                name=m.name,
                metric="flip_rate",
                value=math.fsum(samples) / len(samples),
                unit="1",
                higher_is_better=False,
                path=m.path,
                engine=m.engine,
                interval=intervals.wilson_interval(round(sum(samples)), len(samples)),
                samples=samples,
                details=asked.details(*_OF_TASKS)
                | OfSuite(suite=name).details()
                | {"against": f"the dense model in {other.engine}, {other.path}"},
            )
        )
    return found


def _mean(
    engine: Engine,
    name: str,
    metric: str,
    unit: str,
    samples: list[float],
    higher_is_better: bool,
    details: dict[str, Any],
) -> Measurement:
    infinite = sum(map(math.isinf, samples))
    reason = None
    if infinite:
        reason = (
            f"infinite: in {infinite} of {len(samples)} windows the compressed model rules out a "
            f"token that the dense model does not"
        )
        samples = []
    return Measurement(
        name=name,
        metric=metric,
        value=None if reason else math.fsum(samples) / len(samples),
        unit=unit,
        higher_is_better=higher_is_better,
        path=engine.path,
        engine=engine.name,
        interval=intervals.mean_interval(samples),
        samples=samples,
        details=details,
        reason=reason,
    )
