"""benchmarks/mkor_training.py: every optimizer trains both models, rehearsed for two steps."""

import math

import pytest
import torch

from benchmarks import mkor_training


@pytest.mark.parametrize("kind", ["causal", "masked"])
@pytest.mark.parametrize("name", mkor_training.OPTIMIZERS)
def test_an_optimizer_trains_a_small_model(kind: str, name: str) -> None:
    ids = torch.randint(0, 256, (500,), generator=torch.Generator().manual_seed(0))
    lr = mkor_training.OPTIMIZERS[name][1][0]
    run = mkor_training.trained(kind, name, lr, 0, 2, ids)
    # Random bytes under random weights: about the logarithm of the vocabulary.
    assert run["losses"] == pytest.approx([math.log(257)] * 2, rel=0.1)
