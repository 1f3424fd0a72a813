"""Closeness to the dense model: no labels, so small differences show that accuracy cannot resolve.

On text: the mean Kullback-Leibler divergence of next-token distributions, KL(dense || compressed)
in nats, and how often both have the same likeliest token, on the windows that perplexity is
measured on.  Dense logits are computed again for every window, beside the compressed ones: exact,
and smaller than keeping them (a window of 2048 positions has 200 MB in float16 at a vocabulary of
49152).

On tasks: the share of questions that are answered otherwise than by the dense model, from the
answers that both runs kept; the dense run's come from the stage store.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trinity.harness import statistics
from trinity.harness.accuracy import perplexity
from trinity.harness.data import TextCorpus, Tokenizer
from trinity.harness.engine import Engine
from trinity.harness.records.compare import mismatch
from trinity.harness.records.measurement import Measurement
from trinity.methods.errors import ConfigError

log = logging.getLogger(__name__)

_ROWS = 256  # positions whose distributions are compared at once


def evaluate(
    engine: Engine,
    dense: Engine,
    tokenizer: Tokenizer,
    corpus: TextCorpus,
    seqlen: int,
    windows: int | None = None,
    *,
    name: str | None = None,
    joiner: str = perplexity.BLANK_LINE,
) -> list[Measurement]:
    """`kl` and `top1_agreement` over all positions of the first `windows` windows (None: all).

    dense: the model before compression.  Samples are the windows' means.
    """
    ids, details = perplexity.windows_of(engine, tokenizer, corpus, seqlen, windows, joiner)
    divergences: list[float] = []
    agreements: list[float] = []
    for number, window in enumerate(ids, start=1):
        divergence, agreement = compare(dense.logits(window), engine.logits(window))
        divergences.append(divergence)
        agreements.append(agreement)
        log.info("fidelity on %s: window %d of %d", corpus.name, number, len(ids))
    if not all(map(math.isfinite, divergences)):
        msg = (
            f"fidelity on {corpus.name}: a divergence is not finite. The compressed model's logits "
            "hold NaN or infinity: check the compressed layers, or use a wider dtype."
        )
        raise ConfigError(msg)
    details |= {
        "against": f"the dense model in {dense.name}, {dense.path}",
        "positions": ids.numel(),
        "arithmetic": "log-softmax float32, sums float64",
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
        p = torch.log_softmax(dense[start : start + _ROWS].float().cpu(), dim=-1)
        q = torch.log_softmax(compressed[start : start + _ROWS].float().cpu(), dim=-1)
        total += (p.exp() * (p - q)).sum(dim=-1, dtype=torch.float64).sum()
        same += int((p.argmax(dim=-1) == q.argmax(dim=-1)).sum())
    return float(total) / len(dense), same / len(dense)


def flips(
    ours: Sequence[Measurement], dense: Sequence[Measurement], name: str
) -> list[Measurement]:
    """`flip_rate` of each task; samples are 1 where the answer is another than the dense model's.

    ours, dense: measurements of one suite of tasks on the same examples
    """
    found = []
    for m in ours:
        if "answers" not in m.details:
            continue
        other = next((d for d in dense if (d.name, d.metric) == (m.name, m.metric)), None)
        differing = mismatch(m, other) if other else ["tasks"]
        if other is None or differing:
            msg = f"{name}: {m.name} was measured with other {', '.join(differing)} for the dense."
            raise ConfigError(msg)
        pairs = zip(m.details["answers"], other.details["answers"], strict=True)
        samples = [float(a != b) for a, b in pairs]
        kept = ("examples", "examples_available", "task_version", "num_fewshot", "lm_eval_version")
        found.append(
            Measurement(
                name=m.name,
                metric="flip_rate",
                value=math.fsum(samples) / len(samples),
                unit="1",
                higher_is_better=False,
                path=m.path,
                engine=m.engine,
                interval=statistics.wilson_interval(round(sum(samples)), len(samples)),
                samples=samples,
                details={key: m.details[key] for key in (*kept, "documents_sha256")}
                | {"suite": name, "against": f"the dense model in {other.engine}, {other.path}"},
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
    return Measurement(
        name=name,
        metric=metric,
        value=math.fsum(samples) / len(samples),
        unit=unit,
        higher_is_better=higher_is_better,
        path=engine.path,
        engine=engine.name,
        interval=statistics.mean_interval(samples),
        samples=samples,
        details=details,
    )
