"""Log-likelihoods from logits: float32 log-softmax, float64 sums, never any padding.

Sequences that begin alike (the answers of one question) are read as one tree, and several trees in
one forward, where the engine can pack them: each position sees its own sequence only, so that a
score does not depend on what was read beside it.  Other engines read one sequence at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from trinity.harness.engines import finite
from trinity.harness.engines.engine import Engine, PackingEngine, Tree
from trinity.methods.errors import ConfigError

LONGEST_TREE = 512  # positions: attention over a tree costs their square
# Positions of all trees of one forward, unless one alone has more. Products need some hundreds to
# be fast; attention reads all pairs, of which those of one tree are few.
LONGEST_FORWARD = 512
_ROWS = 256  # rows of logits turned to log-probabilities at once: 50 MB at a vocabulary of 49152


_Planted = tuple[Tree, list[tuple[int, ...]]]  # a tree, and the inputs that its branches stand for


@dataclass(frozen=True)
class Score:
    """How likely a continuation is, and whether greedy decoding would have produced it."""

    log_likelihood: float
    greedy: bool


@dataclass(frozen=True)
class Request:
    """inputs: what the model reads, the context and all but the last token of the continuation."""

    inputs: tuple[int, ...]
    continuation: tuple[int, ...]


def scores(
    engine: Engine,
    requests: Sequence[Request],
    batch: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Score]:
    """Score every request.  batch: trees in one forward, which changes the speed only."""
    wanted = _by_inputs(requests)
    found: dict[Request, Score] = {}
    if isinstance(engine, PackingEngine):
        fitting = {
            inputs: continuations
            for inputs, continuations in wanted.items()
            if all(0 < len(c) <= len(inputs) for c in continuations)
        }
        forest = [pair for pair in _forest(fitting) if engine.can_pack(pair[0])]
        for part in _forwards(forest, batch):
            logits = engine.packed_logits([tree for tree, _ in part])
            for (_, members), branches in zip(part, logits, strict=True):
                for inputs, rows in zip(members, branches, strict=True):
                    if not finite.are_numbers(rows):
                        raise finite.refuse(engine, torch.tensor(inputs, dtype=torch.int64))
                    found.update(_read(rows, inputs, wanted[inputs]))
            progress(len(found), len(set(requests)))
    for inputs, continuations in wanted.items():
        request = Request(inputs, continuations[0])
        if request not in found:
            ids = torch.tensor(inputs, dtype=torch.int64)
            alone = continuation_scores(engine, ids, continuations)
            found.update({Request(inputs, c): s for c, s in zip(continuations, alone, strict=True)})
            progress(len(found), len(set(requests)))
    return [found[request] for request in requests]


def _by_inputs(requests: Sequence[Request]) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Distinct inputs in order, each with its distinct continuations."""
    wanted: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for request in requests:
        continuations = wanted.setdefault(request.inputs, [])
        if request.continuation not in continuations:
            continuations.append(request.continuation)
    return wanted


def _forest(
    wanted: dict[tuple[int, ...], list[tuple[int, ...]]],
) -> Iterator[_Planted]:
    """Neighbours whose joining saves positions become one tree; with each, its sequences."""
    members: list[tuple[int, ...]] = []
    prefix: tuple[int, ...] = ()
    for inputs in wanted:
        shared = prefix[: _common(prefix, inputs)]
        total = _positions(members, prefix)
        joined = _positions([*members, inputs], shared)
        if members and joined < total + len(inputs) and joined <= LONGEST_TREE:
            members, prefix = [*members, inputs], shared
            continue
        if members:
            yield _tree(members, prefix, wanted), members
        members, prefix = [inputs], inputs
    if members:
        yield _tree(members, prefix, wanted), members


def _forwards(forest: list[_Planted], batch: int) -> Iterator[list[_Planted]]:
    """As many neighbours as `batch` and the limit of positions allow."""
    part: list[_Planted] = []
    for planted in forest:
        size = planted[0].size + sum(tree.size for tree, _ in part)
        if part and (len(part) == batch or size > LONGEST_FORWARD):
            yield part
            part = []
        part.append(planted)
    if part:
        yield part


def _tree(
    members: list[tuple[int, ...]],
    prefix: tuple[int, ...],
    wanted: dict[tuple[int, ...], list[tuple[int, ...]]],
) -> Tree:
    keep = tuple(max(map(len, wanted[inputs])) for inputs in members)
    return Tree(prefix, tuple(inputs[len(prefix) :] for inputs in members), keep)


def _positions(members: Sequence[tuple[int, ...]], prefix: tuple[int, ...]) -> int:
    return len(prefix) + sum(len(inputs) - len(prefix) for inputs in members)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _read(
    rows: Tensor, inputs: tuple[int, ...], continuations: list[tuple[int, ...]]
) -> dict[Request, Score]:
    """rows: float [keep, vocab], logits of the last positions of one sequence"""
    return {Request(inputs, c): _score(rows, c) for c in continuations}


def window_loss(engine: Engine, ids: Tensor) -> float:
    """Mean negative log-likelihood of the last `seq - 1` tokens; infinite if the model rules one of
    them out.  ids: int64 [seq]
    """
    logits = finite.logits(engine, ids)
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
    logits = finite.logits(engine, inputs)
    for continuation in continuations:
        if not continuation:
            msg = (
                "an answer has no tokens of its own: the tokenizer makes none of it, or joins all "
                "of it with the question."
            )
            raise ConfigError(msg)
        if len(continuation) > len(logits):
            msg = (
                f"a continuation of {len(continuation)} tokens does not fit the {len(logits)} "
                f"positions that the model reads at most ({engine.max_length}): shorten the "
                "example or use a model with a longer context."
            )
            raise ConfigError(msg)
    return [_score(logits, continuation) for continuation in continuations]


def _score(logits: Tensor, continuation: Sequence[int]) -> Score:
    """logits: float [rows, vocab]; the last `n` predict the `n` tokens of the continuation"""
    targets = torch.tensor(continuation, dtype=torch.int64)
    rows = logits[len(logits) - len(targets) :]
    likelihood = token_log_likelihoods(rows, targets).sum()
    greedy = bool((rows.argmax(dim=-1).cpu() == targets).all())
    return Score(float(likelihood), greedy)


def token_log_likelihoods(logits: Tensor, targets: Tensor) -> Tensor:
    """logits: float [seq, vocab]  targets: int64 [seq]  ->  float64 [seq], on the CPU"""
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    chosen = log_probabilities.gather(1, targets.to(logits.device)[:, None])[:, 0]
    return chosen.cpu().double()


def evenly_spaced(total: int, limit: int | None) -> list[int]:
    """Indices of `limit` of `total` examples spread over all of them (None: every one)."""
    used = total if limit is None else min(limit, total)
    return [number * total // used for number in range(used)]
