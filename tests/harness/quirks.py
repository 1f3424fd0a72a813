"""Model folders as people publish them: what configurations and files differ in."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.harness import families

SHORT = 16  # positions before rope variants change their frequencies
WEIGHTS = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def tensors(folder: Path) -> dict[str, Tensor]:
    """All that a folder's file holds."""
    return load_file(folder / WEIGHTS)


def write(folder: Path, found: dict[str, Tensor], name: str = WEIGHTS) -> None:
    """Write a folder's file again."""
    save_file({k: v.contiguous() for k, v in found.items()}, folder / name, {"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; `...` removes one."""
    path = folder / "config.json"
    data = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in data.items() if value is not ...}
    path.write_text(json.dumps(kept), encoding="utf-8")


def renamed(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Call the tensors of the file otherwise."""
    return lambda folder: write(folder, {change(k): v for k, v in tensors(folder).items()})


def random_head(folder: Path) -> None:
    """A head of its own beside a configuration that ties."""
    found = tensors(folder)
    write(folder, {**found, HEAD: torch.randn_like(found[EMBEDDING])})


def same_head(folder: Path) -> None:
    """The tied weight under both names."""
    found = tensors(folder)
    write(folder, {**found, HEAD: found[EMBEDDING].clone()})


def head_alone(folder: Path) -> None:
    """The tied weight under the head's name."""
    found = tensors(folder)
    found[HEAD] = found.pop(EMBEDDING)
    write(folder, found)


def beside(folder: Path) -> None:
    """Files that are no part of the model."""
    found = {name: torch.randn_like(value) for name, value in tensors(folder).items()}
    write(folder, found, "model_ema.safetensors")
    write(folder, found, "model.fp16.safetensors")
    write(folder, found, "model-00001-of-00002.safetensors")


def sharded(folder: Path) -> None:
    """Two files and an index, and files of an older save beside them."""
    found = tensors(folder)
    (folder / WEIGHTS).unlink()
    names = sorted(found)
    halves = {"model-a.safetensors": names[::2], "model-b.safetensors": names[1::2]}
    for file, members in halves.items():
        write(folder, {name: found[name] for name in members}, file)
    write(folder, {n: torch.randn_like(v) for n, v in found.items()}, "model-zz.safetensors")
    places = {name: file for file, members in halves.items() for name in members}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def half_file(dtype: torch.dtype) -> Callable[[Path], None]:
    """The file's tensors in a narrower type than the run's."""
    return lambda folder: write(folder, {k: v.to(dtype) for k, v in tensors(folder).items()})


@dataclass(frozen=True)
class Quirk:
    """family: of `families.CONFIGS`   config: what differs   change: what is done to the folder"""

    family: str
    config: dict[str, Any]
    change: Callable[[Path], None] = lambda folder: None


def rope(kind: str, **options: Any) -> dict[str, Any]:
    """A rope variant as config.json has it; the model is short in what it was trained on."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **options}}


LONGROPE = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 4.0, 8.0, 16.0]}
ORIGINAL = {"original_max_position_embeddings": SHORT}
ROPES: dict[str, dict[str, Any]] = {
    "linear": rope("linear", factor=4.0),
    "dynamic": {**rope("dynamic", factor=4.0), "max_position_embeddings": SHORT},
    "yarn": rope("yarn", factor=4.0, **ORIGINAL),
    "longrope": rope("longrope", factor=4.0, **LONGROPE, **ORIGINAL),
    "llama3": rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, **ORIGINAL),
    "old keys": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 500.0},
}

QUIRKS: dict[str, Quirk] = {
    "tied, head of its own in the file": Quirk("llama", {}, random_head),
    "tied, both equal in the file": Quirk("llama", {}, same_head),
    "tied, only the head in the file": Quirk("llama", {}, head_alone),
    "untied": Quirk("llama", {"tie_word_embeddings": False}),
    "files beside the model": Quirk("llama", {}, beside),
    "shards beside an older save": Quirk("llama", {}, sharded),
    "bfloat16 file": Quirk("llama", {}, half_file(torch.bfloat16)),
    "float16 file": Quirk("llama", {}, half_file(torch.float16)),
    "attention and mlp biases": Quirk("llama", {"attention_bias": True, "mlp_bias": True}),
    "head_dim apart": Quirk("llama", {"head_dim": 12}),
    "one key/value head": Quirk("llama", {"num_key_value_heads": 1}),
    "gelu": Quirk("llama", {"hidden_act": "gelu"}),
    "dtype auto": Quirk(
        "llama", {}, lambda folder: edit_config(folder, dtype=..., torch_dtype="auto")
    ),
    "no dtype": Quirk("llama", {}, lambda folder: edit_config(folder, dtype=...)),
    "tuples asked for": Quirk(
        "llama", {}, lambda folder: edit_config(folder, output_hidden_states=True)
    ),
    "vocabulary of odd size": Quirk("llama", {"vocab_size": 101}),
    "no sliding window": Quirk("mistral", {"sliding_window": None}),
    "sliding from a layer on": Quirk(
        "qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    ),
    "final softcapping": Quirk("gemma2", {"final_logit_softcapping": 2.0}),
    "no softcapping": Quirk(
        "gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": None}
    ),
    "untied gemma": Quirk("gemma2", {"tie_word_embeddings": False}),
    "opt with projections": Quirk("opt", {"word_embed_proj_dim": 16}),
    "opt-350m": Quirk(
        "opt",
        {
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "_remove_final_layer_norm": False,
        },
    ),
    "opt without biases": Quirk("opt", {"enable_bias": False}),
    "opt without affine norms": Quirk("opt", {"layer_norm_elementwise_affine": False}),
    "opt's old prefix": Quirk("opt", {}, renamed(lambda name: name.removeprefix("model."))),
    "gpt2's old prefix": Quirk("gpt2", {}, renamed(lambda name: name.removeprefix("transformer."))),
    "gpt2 untied": Quirk("gpt2", {"tie_word_embeddings": False}),
    "gpt2 scaled by depth": Quirk("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "neox's old head": Quirk(
        "gpt_neox", {}, renamed(lambda name: name.replace(HEAD, "embed_out.weight"))
    ),
    "neox in series": Quirk("gpt_neox", {"use_parallel_residual": False}),
    "neox tied": Quirk("gpt_neox", {"tie_word_embeddings": True}),
    "neox without biases": Quirk("gpt_neox", {"attention_bias": False}),
    "falcon of the second kind": Quirk(
        "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "falcon of the third kind": Quirk(
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon in series": Quirk("falcon", {"parallel_attn": False, "bias": True}),
    "falcon with a key for each head": Quirk("falcon", {"multi_query": False}),
    "falcon with alibi": Quirk("falcon", {"alibi": True, "bias": True, "parallel_attn": False}),
    "bloom's old prefix": Quirk(
        "bloom", {}, renamed(lambda name: name.removeprefix("transformer."))
    ),
    "bloom with residuals behind norms": Quirk(
        "bloom", {"apply_residual_connection_post_layernorm": True}
    ),
    "mpt clipped": Quirk("mpt", {"attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.3}}),
    "phi with norms of queries": Quirk("phi", {"qk_layernorm": True}),
    "phi of partial rotation": Quirk(
        "phi",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    "phi3 of a long context": Quirk(
        "phi3",
        {
            "rope_parameters": {
                **{"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
                **LONGROPE,
                **ORIGINAL,
            },
            **ORIGINAL,
        },
    ),
    "phi3 with a sliding window": Quirk("phi3", {"sliding_window": 8}),
    "stablelm in parallel": Quirk(
        "stablelm", {"use_parallel_residual": True, "qk_layernorm": True}
    ),
    "stablelm with biases": Quirk("stablelm", {"use_qkv_bias": True}),
    "olmo clipped": Quirk("olmo", {"clip_qkv": 0.3}),
    "cohere with norms of queries": Quirk("cohere", {"use_qk_norm": True, "logit_scale": 0.5}),
    "granite scaled": Quirk("granite", {"logits_scaling": 8.0, "attention_bias": True}),
    "smollm3 with a sliding window": Quirk(
        "smollm3", {"use_sliding_window": True, "sliding_window": 8}
    ),
} | {f"rope {name}": Quirk("llama", config) for name, config in ROPES.items()}


def save(name: str, folder: Path) -> None:
    """Make a quirk's folder."""
    quirk = QUIRKS[name]
    families.save(quirk.family, folder, **quirk.config)
    quirk.change(folder)
