"""How far logits may be from torch's: rounding at one position passes, a wrong formula does not."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trinity.lowering.module.check import MODEL_TOLERANCE, model_error, torch_logits, verify
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense

ALLOWED = MODEL_TOLERANCE[torch.float32]


@pytest.fixture
def logits() -> Tensor:
    """[sequences, positions, vocabulary], as many numbers as a small model's check has."""
    return 3 * torch.randn(16, 17, 2000, generator=torch.Generator().manual_seed(0))


def test_rounding_that_one_position_blows_up_passes(logits: Tensor) -> None:
    found = logits * (1 + 2e-6 * torch.randn(logits.shape))
    found[5, 1] += 3e-4 * logits.abs().max() * torch.randn(2000)
    assert model_error(found, logits) < ALLOWED


def test_one_wrong_position_is_refused(logits: Tensor) -> None:
    found = logits.clone()
    found[5, 1] = logits[5, 2]
    assert model_error(found, logits) > 100 * ALLOWED


def test_one_wrong_word_of_the_vocabulary_is_refused(logits: Tensor) -> None:
    found = logits.clone()
    found[..., 7] = 0
    assert model_error(found, logits) > 100 * ALLOWED


def test_a_step_of_one_percent_in_every_logit_is_refused(logits: Tensor) -> None:
    assert model_error(logits * 1.01, logits) == pytest.approx(0.01, rel=1e-3)


def test_what_is_not_a_number_is_refused(logits: Tensor) -> None:
    found = logits.clone()
    found[0, 0, 0] = torch.nan
    assert not model_error(found, logits) <= ALLOWED


class Broken(nn.Module):
    """A causal model whose logits are not numbers."""

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.full((*input_ids.shape, 7), torch.nan))


def test_a_model_without_numbers_is_no_failure_of_its_module() -> None:
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ConfigError, match="the model's own logits, in torch, hold NaN"):
        verify(None, Broken(), {}, ids)  # type: ignore[arg-type]  # it must not get that far


class Read(Mapping[str, CompressedWeight]):
    """Weights that are made when they are asked for, and how many of them were there at most."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values_of, self.most = values, 0
        self.made: list[weakref.ref[CompressedWeight]] = []

    def __getitem__(self, name: str) -> CompressedWeight:
        weight = Dense(self.values_of[name].clone())
        self.made.append(weakref.ref(weight))
        self.most = max(self.most, sum(of() is not None for of in self.made))
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_of)

    def __len__(self) -> int:
        return len(self.values_of)


def test_logits_of_weights_that_are_read_are_the_models_and_hold_one_at_a_time(
    make_decoder: Callable[[str], Any],
) -> None:
    model = make_decoder("llama")
    linears = {
        name: module.weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    }
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    for name in linears:  # as a model larger than memory is: its linears have no numbers
        layer = model.get_submodule(name)
        layer.weight = nn.Parameter(layer.weight.to("meta"), requires_grad=False)
    read = Read(linears)
    torch.testing.assert_close(torch_logits(model, read, ids), expected)
    assert len(read.made) == len(linears)
    assert read.most <= 2  # the next is made before the name of the last is gone
