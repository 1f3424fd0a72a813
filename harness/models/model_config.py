"""A model folder's config.json: read, and refused where it asks for what cannot be given.

transformers has no common type for configurations, hence `Any`.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from trinity.harness.models import families
from trinity.harness.models.folders import CONFIG, OURS
from trinity.harness.models.model_files import ADAPTER, named_weights, read_json, remedy
from trinity.methods.errors import ConfigError, TrinityError, UnsupportedError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What configurations call the longest sequence.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
WITHOUT_END = 2048  # positions that Bloom was trained on, whose configurations say nothing
# Quantization methods, and what reads their checkpoints here.
READERS = {"gptq": "gptq-checkpoint"}
# How configurations say how many experts a block has, and kinds that say it in a nested part.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
MIXTURES = ("dbrx", "jetmoe", "mixtral")
# How configurations say how many blocks a model has. transformers makes lists of as many, and for a
# damaged number that takes hours and all memory.
BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
MOST_BLOCKS = 10_000
# How a model is computed and what a call returns, not what the model is: attention may name what is
# not installed here.
NOT_THE_MODEL = (
    "_attn_implementation",
    "attn_implementation",
    "_attn_implementation_internal",
    "return_dict",
    "use_return_dict",
    "output_attentions",
    "output_hidden_states",
    "torchscript",
)


def read_config(folder: Path) -> Any:
    """The model's configuration; refuses unknown kinds early, and never runs a folder's code."""
    path = folder / CONFIG
    if not path.is_file() and not path.is_symlink():
        msg = f"model {folder}: there is no config.json. Expected a Hugging Face model folder."
        raise ConfigError(adapted(folder) or msg)
    data = read_json(path)
    kind = _kind(folder, data)
    for key in BLOCKS:
        if isinstance(data.get(key), (int, float)) and data[key] > MOST_BLOCKS:
            msg = f"model {folder}: its config.json says {key} {data[key]}, more than any model has"
            raise ConfigError(f"{msg}. {remedy(path)}")
    known = {key: value for key, value in data.items() if key not in NOT_THE_MODEL}
    for key in ("dtype", "torch_dtype"):
        # 'auto' and the like: the run says in which type it computes.
        if known.get(key) not in (None, *DTYPES):
            del known[key]
    try:
        config = CONFIG_MAPPING[kind].from_dict(known, name_or_path=str(folder))
    except Exception as error:
        # Whatever a configuration class does with values that it did not expect.
        raise ConfigError(unusable(folder, error)) from error
    named_weights(folder, data)
    blocks = config.num_hidden_layers
    if not isinstance(blocks, int) or blocks < 1:
        msg = (
            f"model {folder}: its config.json says that it has no blocks (num_hidden_layers is "
            f"{blocks!r})."
        )
        raise ConfigError(msg)
    window = getattr(config, "sliding_window", None)
    if window is not None and (not isinstance(window, int) or window < 1):
        msg = (
            f"model {folder}: its config.json has sliding_window {window!r}, expected a whole "
            f"number of 1 or more; `null` means none."
        )
        raise ConfigError(msg)
    return config


def _kind(folder: Path, data: dict[str, Any]) -> str:
    """The model type, if there is a family for it."""
    kind = data.get("model_type")
    if not isinstance(kind, str):
        msg = (
            f"model {folder}: its config.json has no `model_type` that says which architecture "
            f"it is. {remedy(folder / CONFIG)}"
        )
        raise ConfigError(msg)
    try:
        families.get(kind)
    except TrinityError as error:
        raise type(error)(f"model {folder}: {_special(kind, data)}{error}") from error
    if kind not in CONFIG_MAPPING:
        msg = f"model {folder}: the installed transformers has no model type '{kind}'."
        raise UnsupportedError(msg)
    return kind


def _special(kind: str, data: dict[str, Any]) -> str:
    """What there is to say of a model that has no family."""
    experts = next((data[key] for key in EXPERTS if isinstance(data.get(key), int)), 0)
    if experts > 1 or kind in MIXTURES or "moe" in kind:
        count = f" ({experts} experts a block)" if experts > 1 else ""
        return f"it is a mixture of experts{count}, which no family here describes: "
    if data.get("auto_map"):
        return "it comes with code of its own (`auto_map`), which is never run here: "
    return ""


def unusable(folder: Path, error: Exception) -> str:
    """One paragraph about values of config.json that transformers does not take."""
    reason = " ".join(str(error).split())
    if isinstance(error, KeyError) and error.args:
        # Python's own has the key alone, a library's may have a sentence.
        key = str(error.args[0])
        reason = f"there is no '{key}'" if key.isidentifier() else " ".join(key.split())
    return (
        f"model {folder}: transformers cannot make a model of its config.json ({reason}). "
        f"Correct it, or get it again."
    )


def quantized(folder: Path, config: Any) -> str | None:
    """Why a model's weights are not its numbers but codes for them; None if they are."""
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method == OURS:
        return (
            f"model {folder}: is a checkpoint that trinity compressed. Evaluate, time, lower or "
            f"export it; compress the model it was made from."
        )
    how = f"with {method}" if method else "by another program"
    reader = READERS.get(str(method))
    remedy = (
        f"`trinity compress {folder} --method {reader} --out DIR` reads it."
        if reader
        else "Nothing here reads it: take the model before it was quantized. If its weights are "
        "plain floats after all, remove `quantization_config` from config.json."
    )
    return f"model {folder}: is already quantized {how}, as its config.json says. {remedy}"


def adapted(folder: Path) -> str | None:
    """Why a folder's weights are not all of its model: an adapter of peft lies beside them."""
    if not (folder / ADAPTER).is_file():
        return None
    base = read_json(folder / ADAPTER).get("base_model_name_or_path") or "the model it belongs to"
    return (
        f"model {folder}: holds an adapter of {base} ({ADAPTER}), which would be left out. Merge "
        f"it with peft's `merge_and_unload`, save that model and give its folder; or remove "
        f"{ADAPTER} if the weights are whole without it."
    )


def dtype_name(config: Any) -> str:
    """'float32': the type of a model's parameters, as its configuration says."""
    return str(config.dtype).removeprefix("torch.")


def context_length(config: Any) -> int:
    """Positions that a model was built for; a kind that knows no end has what it was trained on."""
    for key in POSITIONS:
        if isinstance(found := getattr(config, key, None), int):
            return found
    return WITHOUT_END
