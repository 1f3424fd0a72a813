"""Two-block random models of every supported family, as small as their code allows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    Olmo2Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)

_COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda: LlamaConfig(**_COMMON, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_COMMON, sliding_window=8),
    "qwen2": lambda: Qwen2Config(**_COMMON),
    "qwen3": lambda: Qwen3Config(**_COMMON, head_dim=8),
    "gemma2": lambda: Gemma2Config(**_COMMON, head_dim=8, sliding_window=8),
    "gemma3_text": lambda: Gemma3TextConfig(
        **_COMMON,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "opt": lambda: OPTConfig(
        vocab_size=96,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=48
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "gptj": lambda: GPTJConfig(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=48, rotary_dim=4
    ),
    "phi": lambda: PhiConfig(**_COMMON),
    "phi3": lambda: Phi3Config(**_COMMON, pad_token_id=0),
    "stablelm": lambda: StableLmConfig(**_COMMON),
    "olmo": lambda: OlmoConfig(**_COMMON),
    "olmo2": lambda: Olmo2Config(**_COMMON),
    "cohere": lambda: CohereConfig(**_COMMON, bos_token_id=1, eos_token_id=2),
    "gemma": lambda: GemmaConfig(**_COMMON, head_dim=8),
    "granite": lambda: GraniteConfig(
        **_COMMON, embedding_multiplier=3.0, attention_multiplier=0.5, residual_multiplier=0.7
    ),
    "smollm3": lambda: SmolLM3Config(
        **_COMMON, no_rope_layers=[1, 0], pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
    "falcon": lambda: FalconConfig(
        vocab_size=96,
        hidden_size=32,
        ffn_hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "bloom": lambda: BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: MptConfig(vocab_size=96, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
}


def save(family: str, folder: Path, **changes: Any) -> Any:
    """Make a random model of a family, save it, and return it.  Weights are drawn wide enough to
    matter.

    changes: of the configuration
    """
    torch.manual_seed(0)
    config = CONFIGS[family]()
    if changes:
        config = type(config)(**{**config.to_diff_dict(), **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.save_pretrained(folder)
    return model
