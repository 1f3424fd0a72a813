from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks import gguf_model
from trinity.methods import rtn
from trinity.methods.errors import UnsupportedError


def test_q4_0_decodes_to_the_weight_it_was_made_of() -> None:
    weight = rtn.compress(torch.randn(6, 96), rtn.RtnConfig(group_size=32))
    weight.codes[0, :2] = torch.tensor([-8, 7])  # nearest never takes the lowest code
    assert torch.equal(gguf_model.q4_0(weight).decoded(), weight.dequantize())


@pytest.mark.parametrize(
    "options",
    [{"group_size": 16}, {"bits": 8}, {"symmetric": False}, {"scale_dtype": "float32"}],
    ids=str,
)
def test_q4_0_refuses_other_formats(options: dict[str, object]) -> None:
    config = rtn.RtnConfig.model_validate({"group_size": 32, **options})
    with pytest.raises(UnsupportedError, match="Q4_0 holds"):
        gguf_model.q4_0(rtn.compress(torch.randn(6, 96), config))


def test_another_reader_finds_the_same_model_in_the_file(tmp_path: Path) -> None:
    """transformers undoes the order of rows by code of its own."""
    model = LlamaForCausalLM(tiny()).eval()
    tensors = {k: gguf_model.stored(v.detach(), Kind.F32) for k, v in model.named_parameters()}
    gguf_model.write(tmp_path / "model.gguf", model.config, tensors)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(read(ids).logits, model(ids).logits)


def test_a_model_that_is_no_plain_llama_is_refused(tmp_path: Path) -> None:
    config = tiny()
    config.attention_bias = True
    with pytest.raises(UnsupportedError, match="plain Llama"):
        gguf_model.write(tmp_path / "model.gguf", config, {})


def tiny() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
    )
