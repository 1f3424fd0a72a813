"""Packing sequences into one forward must not change what any of them says."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.harness import families
from trinity.harness.engine import PACKING, TorchEngine, Tree

TREES = [
    Tree((5, 9, 12, 3), ((7,), (8, 2, 40), (61, 4)), (1, 3, 2)),
    Tree((9,), ((3, 3, 3, 3),), (5,)),
    Tree((5, 9, 12, 3), ((), (11, 17)), (2, 4)),
]


def engine(family: str, folder: Path) -> TorchEngine:
    families.save(family, folder)
    return TorchEngine(AutoModelForCausalLM.from_pretrained(folder), 64, "reference")


@pytest.mark.parametrize("family", families.CONFIGS)
def test_packed_logits_are_those_of_each_sequence_alone(family: str, tmp_path: Path) -> None:
    model = engine(family, tmp_path)
    assert family in PACKING
    for tree, branches in zip(TREES, model.packed_logits(TREES), strict=True):
        assert model.can_pack(tree)
        for branch, keep, found in zip(tree.branches, tree.keep, branches, strict=True):
            alone = model.logits(torch.tensor([*tree.prefix, *branch]))[-keep:]
            torch.testing.assert_close(found, alone, atol=2e-4, rtol=2e-4)


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
