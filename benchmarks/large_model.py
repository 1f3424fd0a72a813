"""A synthetic LLaMA of any size: few but wide blocks, bfloat16, in shards with an index.

    python benchmarks/large_model.py FOLDER --blocks 20           # 8.6 GB, of LLaMA-2-7B's shapes

Weights are drawn from a seed and scaled as training begins: its text is noise, its arithmetic
that of a model of this size.  The tokenizer has a token for every byte.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig

SHARD = "model-{:05d}-of-{:05d}.safetensors"


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--inner", type=int, default=11008)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    size = make(asked.folder, sized(asked.blocks, asked.hidden, asked.inner, asked.vocabulary))
    print(f"{asked.folder}: {size / 1e9:.2f} GB of weights")


def sized(blocks: int, hidden: int, inner: int, vocabulary: int) -> LlamaConfig:
    """The configuration of a LLaMA of these sizes, with heads of 128 (or fewer, if it is small)."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=max(1, hidden // 128),
        max_position_embeddings=4096,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=False,
    )


def make(folder: Path, config: LlamaConfig, seed: int = 0) -> int:
    """Write configuration, tokenizer, shards and index; one block is in memory.  -> bytes"""
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    write_tokenizer(folder)
    generator, count = torch.Generator().manual_seed(seed), config.num_hidden_layers + 1
    places: dict[str, str] = {}
    total = 0
    for number in range(count):
        shapes = outside(config) if number == 0 else block(config, number - 1)
        tensors = {name: drawn(shape, generator) for name, shape in shapes.items()}
        file = SHARD.format(number + 1, count)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def outside(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of what is in no block."""
    table = (config.vocab_size, config.hidden_size)
    return {
        "model.embed_tokens.weight": table,
        "lm_head.weight": table,
        "model.norm.weight": (config.hidden_size,),
    }


def block(config: LlamaConfig, index: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one block."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"},
        **{f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")},
        "mlp.down_proj.weight": (hidden, inner),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    return {f"model.layers.{index}.{name}": shape for name, shape in shapes.items()}


def drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Numbers of a norm: ones; of a matrix: normal, so that outputs are as large as inputs."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, generator=generator) * shape[1] ** -0.5).bfloat16()


def write_tokenizer(folder: Path) -> None:
    """A token for every byte: any text can be read, and no vocabulary is needed."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")


if __name__ == "__main__":
    main()
