from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trinity.harness.checkpoints import dequantized
from trinity.harness.checkpoints.dequantized import Remembering


class _Counting:
    """An engine of 3 tokens that counts how often it reads."""

    name, path, max_length = "torch", "reference", 8
    model = nn.Identity()
    reads = 0

    def logits(self, ids: Tensor) -> Tensor:
        self.reads += 1
        return torch.nn.functional.one_hot(ids, 3).float()


def test_a_text_is_read_once_and_another_for_itself() -> None:
    engine: Any = _Counting()
    remembering = Remembering(engine)
    texts = [torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([0, 1])]
    for ids in texts:
        assert torch.equal(remembering.logits(ids), engine.logits(ids))
    assert engine.reads == len(texts) + 2


def test_what_does_not_fit_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantized, "KEPT_BYTES", 30)  # one text of 2 tokens: 24 bytes
    engine: Any = _Counting()
    remembering = Remembering(engine)
    for ids in [torch.tensor([0, 1]), torch.tensor([1, 2])] * 2:
        remembering.logits(ids)
    assert engine.reads == 3
