"""A model that computes no numbers has no score, and what broke it is named."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tests.harness import families
from tests.harness.tiny import BigramEngine
from trinity.harness.engines import finite
from trinity.harness.engines.engine import TorchEngine
from trinity.harness.engines.finite import NotFiniteError

IDS = torch.tensor([3, 1, 4, 1, 5])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = AutoModelForCausalLM.from_config(families.CONFIGS["llama"]())
    return made


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        ([0.0, 1.0], True),
        ([-math.inf, 1.0], True),
        ([-math.inf, -math.inf], False),
        ([math.inf, 1.0], False),
        ([math.nan, 1.0], False),
    ],
)
def test_only_a_row_that_rules_out_some_tokens_at_most_is_a_distribution(
    row: list[float], numbers: bool
) -> None:
    assert finite.are_numbers(torch.tensor([[1.0, 2.0], row])) is numbers


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("model.layers.1.mlp.up_proj", "output of model.layers.1.mlp.up_proj, whose weight holds"),
        ("model.norm", r"output of model\.norm, whose weight holds"),
        ("model.embed_tokens", r"output of model\.embed_tokens, whose weight holds"),
    ],
)
def test_the_layer_that_breaks_first_is_named(model: nn.Module, broken: str, said: str) -> None:
    parameters = model.get_submodule(broken).weight
    parameters.data[..., 3] = math.inf
    parameters.data[3] = math.inf
    with pytest.raises(NotFiniteError, match=said):
        finite.logits(TorchEngine(model, 64, "simulated"), IDS)


def test_a_sum_between_layers_that_overflows_is_named_by_the_block_that_adds(
    model: nn.Module,
) -> None:
    half = model.to(torch.float16)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        half.get_submodule(f"model.layers.0.{name}").register_forward_hook(
            lambda module, args, output: torch.full_like(output, 6e4)
        )
    with pytest.raises(NotFiniteError, match=r"output of model\.layers\.0\. "):
        finite.logits(TorchEngine(half, 64, "simulated"), IDS)


def test_looking_leaves_no_hook_behind(model: nn.Module) -> None:
    with finite.first_not_finite(model) as found:
        TorchEngine(model, 64, "reference").logits(IDS)
    assert not found
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_engine_without_layers_says_what_to_do() -> None:
    broken: Tensor = torch.full((256, 256), math.nan)
    with pytest.raises(NotFiniteError, match="evaluate it with the engine torch"):
        finite.logits(BigramEngine(broken), IDS)
