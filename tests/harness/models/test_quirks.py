"""Whatever a folder's quirk, the model is the one that transformers reads from it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.harness import families, quirks
from trinity.harness.checkpoints import checkpoint
from trinity.harness.checkpoints.checkpoint import Checkpoint
from trinity.harness.checkpoints.exporting import export
from trinity.harness.compress import plan
from trinity.harness.compress.walk import Walk
from trinity.harness.models.decoder import Decoder
from trinity.harness.recipes.recipe import CompressSpec
from trinity.harness.store.stages import StageStore

IDS = torch.randint(0, 96, (1, 40), generator=torch.Generator().manual_seed(1))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS, use_cache=False).logits
    return found


def whole(decoder: Decoder) -> Any:
    decoder.load_outside_blocks()
    for index in range(len(decoder.blocks)):
        decoder.load(f"{decoder.family.blocks}.{index}")
    return decoder.model


@pytest.mark.parametrize("name", quirks.QUIRKS)
def test_logits_are_those_of_from_pretrained(name: str, tmp_path: Path) -> None:
    """By the walker's reader, by a checkpoint made without compression, and by its export."""
    folder, made, exported = tmp_path / "model", tmp_path / "checkpoint", tmp_path / "exported"
    quirks.save(name, folder)
    wanted = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    decoder = Decoder(folder, torch.float32, torch.device("cpu"))
    assert torch.equal(logits(whole(decoder)), wanted)
    dense = plan.make(CompressSpec.model_validate({"steps": []}), decoder.layer_shapes())
    blocks = Walk(decoder, dense, None, StageStore(tmp_path / "store"), {}).run(lambda d, o: None)
    made.mkdir()
    checkpoint.write(made, decoder, blocks, {"recipe": {}})
    assert torch.equal(logits(Checkpoint.open(made).load_model()), wanted)
    export(Checkpoint.open(made), "huggingface", exported)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(exported)), wanted)


def test_an_attention_that_is_not_installed_is_no_part_of_the_model(tmp_path: Path) -> None:
    quirks.save("untied", tmp_path)
    wanted = logits(AutoModelForCausalLM.from_pretrained(tmp_path))
    quirks.edit_config(tmp_path, _attn_implementation="flash_attention_2")
    assert torch.equal(logits(whole(Decoder(tmp_path, torch.float32, torch.device("cpu")))), wanted)


@pytest.mark.parametrize("family", ["gptj", "llama", "gemma3_text", "falcon"])
def test_in_a_narrow_type_too_logits_are_those_of_from_pretrained(
    family: str, tmp_path: Path
) -> None:
    """Buffers that no file holds are computed in float32 first, positions among them."""
    families.save(family, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    decoder = Decoder(tmp_path, torch.bfloat16, torch.device("cpu"))
    assert torch.equal(logits(whole(decoder)), logits(theirs))
