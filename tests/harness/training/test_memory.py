"""harness/training/memory.py: what is said to be needed, beside what a model keeps."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.harness.families import CONFIGS
from trinity.harness.models import families
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.records import available
from trinity.harness.training import memory
from trinity.harness.training.workers import Workers, alone
from trinity.methods.errors import MachineError


def _kept(config: Any, seqlen: int) -> int:
    """Bytes that autograd keeps of the blocks of one window, weights left out."""
    model = AutoModelForCausalLM.from_config(config).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}
    marks: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    blocks: Any = model.get_submodule(families.get(config.model_type).blocks)
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: marks.append(sum(found.values())))
        block.register_forward_hook(lambda *_: marks.append(sum(found.values())))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.zeros(1, seqlen, dtype=torch.int64), use_cache=False)
    return sum(after - before for before, after in zip(marks[::2], marks[1::2], strict=True))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_activations_are_those_that_are_kept_within_a_half(family: str) -> None:
    config, spec = CONFIGS[family](), TrainingSpec(batch=1, seqlen=48)
    logits = 48 * config.vocab_size * memory.OF_LOGITS * 4
    said = memory.needs(config, spec, 1)["activations"] - logits
    assert 2 / 3 < said / _kept(config, 48) < 1.5


def test_weights_gradients_and_moments_are_counted_to_the_byte() -> None:
    config = CONFIGS["qwen2"]()
    count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    found = memory.needs(config, TrainingSpec(), 1)
    assert [found[name] for name in ("weights", "gradients", "moments", "masks")] == [
        4 * count,
        4 * count,
        8 * count,
        0,
    ]


def test_what_saves_memory_is_counted() -> None:
    config = CONFIGS["llama"]()
    config.num_hidden_layers = 8
    wide = memory.needs(config, TrainingSpec(), 1)["activations"]
    for options in ({"accumulate": 4}, {"precision": "bfloat16"}, {"checkpointing": "blocks"}):
        assert memory.needs(config, TrainingSpec(**options), 1)["activations"] < wide
    assert memory.needs(config, TrainingSpec(), 4)["activations"] * 4 == wide


def test_a_training_that_does_not_fit_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, spec = CONFIGS["llama"](), TrainingSpec()
    total = sum(memory.needs(config, spec, 1).values())
    monkeypatch.setattr(available, "available_bytes", lambda: total)
    memory.check(config, spec, alone(torch.device("cpu")))
    monkeypatch.setattr(available, "available_bytes", lambda: total - 1)
    with pytest.raises(MachineError, match=r"takes about .* GB at its fullest.*`accumulate`"):
        memory.check(config, spec, alone(torch.device("cpu")))


def test_a_process_of_a_divided_model_is_counted_with_its_share() -> None:
    config = CONFIGS["llama"]()
    whole = memory.needs(config, TrainingSpec(batch=8), 8)
    found = memory.needs(config, TrainingSpec(batch=8, sharding="blocks"), 8)
    for name in ("weights", "gradients", "moments"):
        assert found[name] == whole[name] / 8
    model = AutoModelForCausalLM.from_config(config)
    block = 4 * sum(p.numel() for p in model.model.layers[0].parameters())
    assert found["gathered"] > block
    assert whole["gathered"] == 0
    assert found["activations"] == whole["activations"]


def test_what_the_first_process_collects_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    config, spec = CONFIGS["llama"](), TrainingSpec(sharding="blocks")
    found = memory.needs(config, spec, 4)
    total = 2 * sum(found.values()) + 4 * (found["weights"] + found["moments"])
    monkeypatch.setattr(available, "available_bytes", lambda: total - 1)
    memory.check(config, spec, Workers(1, 4, 2, torch.device("cpu")))
    with pytest.raises(MachineError, match=r"`sharding: blocks`"):
        memory.check(config, spec, Workers(0, 4, 2, torch.device("cpu")))
