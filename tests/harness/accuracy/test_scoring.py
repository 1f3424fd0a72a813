"""Trees are an economy: which sequences share one must show in the count of positions only."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.harness.tiny import BigramEngine
from trinity.harness.accuracy import scoring
from trinity.harness.accuracy.scoring import Request
from trinity.harness.engines.engine import Tree
from trinity.methods.errors import ConfigError


class PackingBigram(BigramEngine):
    """Packs by reading each sequence alone, and notes the trees it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.trees: list[list[Tree]] = []

    def can_pack(self, tree: Tree) -> bool:
        return True

    def packed_logits(self, trees: Sequence[Tree]) -> list[list[Tensor]]:
        self.trees.append(list(trees))
        return [
            [
                self.table[torch.tensor([*tree.prefix, *branch])][-keep:]
                for branch, keep in zip(tree.branches, tree.keep, strict=True)
            ]
            for tree in trees
        ]


QUESTION = tuple(range(20, 40))
REQUESTS = [
    *(Request((*QUESTION, answer), (answer, 7)) for answer in (3, 4, 5)),
    Request((1, 2, 3), (9,)),
    Request((1, 2, 3), (8,)),
    Request((*QUESTION, 3), (3, 7)),
]


def test_scores_are_those_of_each_sequence_alone_in_the_order_asked() -> None:
    plain = scoring.scores(BigramEngine(), REQUESTS)
    assert scoring.scores(PackingBigram(), REQUESTS) == plain
    assert plain[0] == plain[5]
    engine = BigramEngine()
    expected = scoring.continuation_scores(engine, torch.tensor(REQUESTS[1].inputs), [(4, 7)])
    assert plain[1] == expected[0]


def test_the_answers_of_a_question_are_one_tree() -> None:
    engine = PackingBigram()
    scoring.scores(engine, REQUESTS, batch=8)
    ((first, second),) = engine.trees
    assert first == Tree(QUESTION, ((3,), (4,), (5,)), (2, 2, 2))
    assert second == Tree((1, 2, 3), ((),), (1,))


def test_a_forward_holds_as_many_trees_as_asked() -> None:
    engine = PackingBigram()
    requests = [Request((n, n + 1, n + 2), (5,)) for n in range(0, 50, 10)]
    scoring.scores(engine, requests, batch=2)
    assert [len(trees) for trees in engine.trees] == [2, 2, 1]


def test_a_tree_does_not_outgrow_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "LONGEST_TREE", 22)
    engine = PackingBigram()
    scoring.scores(engine, REQUESTS[:3], batch=8)
    assert [tree.size for trees in engine.trees for tree in trees] == [22, 21]


def test_every_request_is_reported_once() -> None:
    seen: list[tuple[int, int]] = []
    scoring.scores(PackingBigram(), REQUESTS, 1, lambda done, of: seen.append((done, of)))
    assert seen[-1] == (5, 5)


@pytest.mark.parametrize("kind", [BigramEngine, PackingBigram])
def test_a_sequence_without_numbers_is_refused_alone_and_in_a_tree(kind: type) -> None:
    engine = kind()
    engine.table = engine.table.clone()
    engine.table[3] = torch.nan
    with pytest.raises(ConfigError, match="hold NaN or infinity"):
        scoring.scores(engine, REQUESTS, batch=8)


def test_a_token_that_is_ruled_out_has_no_likelihood_and_is_not_greedy() -> None:
    engine = BigramEngine()
    engine.table = engine.table.clone()
    engine.table[3, 9] = -torch.inf
    found = scoring.scores(engine, [Request((1, 2, 3), (9,)), Request((1, 2, 3), (8,))])
    assert found[0] == scoring.Score(-math.inf, False)
    assert math.isfinite(found[1].log_likelihood)


def test_an_answer_without_tokens_is_refused_as_that() -> None:
    with pytest.raises(ConfigError, match="an answer has no tokens of its own"):
        scoring.scores(PackingBigram(), [Request((1, 2, 3), ())])
