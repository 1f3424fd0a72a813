"""The step before it is compiled: in eager torch, for several sequences of every family."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.lowering.conftest import FAMILIES
from trinity.lowering.geometry import Geometry, StepShape
from trinity.lowering.graph.export import Head, LastHead, Step, Trunk

LENGTHS, LONGEST, BATCH = (9, 1, 1), 11, 3


@pytest.mark.parametrize(
    "family",
    FAMILIES,
)
def test_a_step_of_several_sequences_is_that_of_each_alone(
    make_decoder: Callable[[str], nn.Module], family: str
) -> None:
    model = make_decoder(family)
    geometry = Geometry.of(model.config)
    ids = torch.randint(3, 64, (BATCH, LONGEST), generator=torch.Generator().manual_seed(3))
    size = (BATCH, geometry.kv_heads, LONGEST, geometry.head_dim)
    caches = [torch.zeros(size) for _ in range(2 * geometry.layers)]
    found, start = [], 0
    with torch.no_grad():
        expected = torch.cat([model(sequence[None]).logits for sequence in ids])
        for length in LENGTHS:
            step = Step(model, geometry, StepShape(length, LONGEST, LONGEST, BATCH))
            positions = torch.arange(start, start + length)
            found.append(step(ids[:, start : start + length], positions, *caches))
            start += length
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "family",
    FAMILIES,
)
def test_trunk_and_head_are_a_step(make_decoder: Callable[[str], nn.Module], family: str) -> None:
    model = make_decoder(family)
    geometry, shape = Geometry.of(model.config), StepShape(5, LONGEST, LONGEST)
    ids, positions = torch.tensor([[5, 9, 3, 60, 4]]), torch.arange(5)
    modules = dict(model.named_modules())
    with torch.no_grad():
        found = []
        for kind in (Step, Trunk):
            size = (1, geometry.kv_heads, LONGEST, geometry.head_dim)
            caches = [torch.zeros(size) for _ in range(2 * geometry.layers)]
            found.append(kind(model, geometry, shape)(ids, positions, *caches))
        logits, hidden = found
        assert torch.equal(Head(model)(hidden), logits)
        last = LastHead(model)(hidden, torch.tensor([3]))
    torch.testing.assert_close(last, logits[:, 3:4], atol=1e-5, rtol=1e-5)
    assert dict(model.named_modules()) == modules
