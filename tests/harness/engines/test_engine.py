"""Packing sequences into one forward must not change what any of them says."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.harness import families, quirks
from trinity.harness.engines.engine import TorchEngine, Tree
from trinity.harness.models.families import BUILT_IN
from trinity.methods.errors import ConfigError

TREES = [
    Tree((5, 9, 12, 3), ((7,), (8, 2, 40), (61, 4)), (1, 3, 2)),
    Tree((9,), ((3, 3, 3, 3),), (5,)),
    Tree((5, 9, 12, 3), ((), (11, 17)), (2, 4)),
]


def engine(family: str, folder: Path) -> TorchEngine:
    families.save(family, folder)
    return TorchEngine(AutoModelForCausalLM.from_pretrained(folder), 64, "reference")


@pytest.mark.parametrize("family", [name for name in families.CONFIGS if BUILT_IN[name].packs])
def test_packed_logits_are_those_of_each_sequence_alone(family: str, tmp_path: Path) -> None:
    model = engine(family, tmp_path)
    for tree, branches in zip(TREES, model.packed_logits(TREES), strict=True):
        assert model.can_pack(tree)
        for branch, keep, found in zip(tree.branches, tree.keep, branches, strict=True):
            alone = model.logits(torch.tensor([*tree.prefix, *branch]))[-keep:]
            torch.testing.assert_close(found, alone, atol=2e-4, rtol=2e-4)


def of_quirk(name: str, folder: Path) -> Any:
    quirks.save(name, folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def alone(model: Any, ids: list[int]) -> Tensor:
    """Logits of a model that has read nothing else.  -> [seq, vocab]"""
    with torch.no_grad():
        found: Tensor = copy.deepcopy(model)(torch.tensor([ids])).logits[0]
    return found


@pytest.mark.parametrize("name", quirks.QUIRKS)
def test_no_score_depends_on_what_is_read_beside_or_before_it(name: str, tmp_path: Path) -> None:
    """Sequences of every length, packed if the engine says that they may be, else one by one."""
    untouched = of_quirk(name, tmp_path)
    model = TorchEngine(copy.deepcopy(untouched), 64, "reference")
    ids = torch.randint(0, 96, (60,), generator=torch.Generator().manual_seed(2)).tolist()
    trees = [Tree(tuple(ids[:n]), ((7, 3), (8,)), (n, 2)) for n in (3, 40, 14, 22, 7)]
    packing = [tree for tree in trees if model.can_pack(tree)]
    found = dict(zip(packing, model.packed_logits(packing), strict=True)) if packing else {}
    for tree in trees:
        for number, (branch, keep) in enumerate(zip(tree.branches, tree.keep, strict=True)):
            sequence = [*tree.prefix, *branch]
            wanted = alone(untouched, sequence)[-keep:]
            read = found[tree][number] if tree in found else model.logits(torch.tensor(sequence))
            torch.testing.assert_close(read[-keep:], wanted, atol=3e-4, rtol=3e-4)


@pytest.mark.parametrize("name", ["rope dynamic", "rope longrope"])
def test_decoding_goes_on_with_a_sequence_as_if_no_other_was_read(
    name: str, tmp_path: Path
) -> None:
    untouched = of_quirk(name, tmp_path)
    ids = torch.randint(0, 96, (1, 30), generator=torch.Generator().manual_seed(3))

    def decoded(engine: TorchEngine, between: Callable[[], object]) -> Tensor:
        session, rows = engine.session(), []
        rows.append(session.prefill(ids[:, :12]))
        for index in range(12, 30):
            between()
            rows.append(session.step(ids[:, index]))
        return torch.cat(rows)

    fresh, busy = (TorchEngine(copy.deepcopy(untouched), 64, "reference") for _ in range(2))
    wanted = decoded(fresh, lambda: None)
    found = decoded(busy, lambda: busy.logits(torch.arange(60)))
    assert torch.equal(found, wanted)


def test_only_sequences_that_rope_reads_as_it_was_trained_are_packed(tmp_path: Path) -> None:
    for name, packs in (("dynamic", False), ("longrope", False), ("yarn", True), ("llama3", True)):
        model = TorchEngine(of_quirk(f"rope {name}", tmp_path / name), 64, "reference")
        assert model.can_pack(Tree((1,) * 15, ((2,),), (1,)))
        assert model.can_pack(Tree((1,) * 16, ((2,),), (1,))) is packs


def test_a_sequence_longer_than_the_sliding_window_is_not_packed(tmp_path: Path) -> None:
    model = engine("mistral", tmp_path)
    assert model.can_pack(Tree((1,) * 7, ((2,),), (1,)))
    assert not model.can_pack(Tree((1,) * 8, ((2,),), (1,)))


def test_the_rows_that_a_tree_wants_may_lie_in_its_prefix(tmp_path: Path) -> None:
    model = engine("llama", tmp_path)
    ((found,),) = model.packed_logits([Tree((1, 2, 3), ((),), (3,))])
    torch.testing.assert_close(found, model.logits(torch.tensor([1, 2, 3])), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", families.CONFIGS)
def test_several_sequences_decode_as_each_alone(family: str, tmp_path: Path) -> None:
    model = engine(family, tmp_path)
    ids = torch.randint(0, 96, (3, 14), generator=torch.Generator().manual_seed(1))
    session = model.session()
    found = [session.prefill(ids[:, :10]), *(session.step(ids[:, i]) for i in range(10, 14))]
    alone = torch.stack([model.logits(sequence)[9:] for sequence in ids])
    torch.testing.assert_close(torch.stack(found, dim=1), alone, atol=2e-4, rtol=2e-4)


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    model = engine("llama", tmp_path)
    with pytest.raises(ConfigError, match=r"token 96 .* vocabulary of 96"):
        model.logits(torch.tensor([1, 96]))
    with pytest.raises(ConfigError, match="tokenizer beside it"):
        model.packed_logits([Tree((1, 2), ((97,), (3,)), (1, 1))])
