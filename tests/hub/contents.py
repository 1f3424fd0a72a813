"""What lies on this hub: real names and layouts, tiny random weights, short texts."""

import gzip
import io
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pyarrow
import pyarrow.parquet
import safetensors.torch
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from tests.hub.server import FakeHub

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
VOCABULARY = len(SPECIAL) + 256
CONTEXT = 64


def fill(hub: FakeHub) -> None:
    """The models and data sets that the papers' small models need, one gated model, and one of
    each layout.
    """
    hub.add("facebook/opt-125m", opt_125m())
    hub.add("facebook/opt-350m", opt_350m())
    hub.add("facebook/opt-1.3b", sharded_bin())
    hub.add("huggyllama/llama-7b", llama_sharded())
    hub.add("meta-llama/Llama-2-7b-hf", llama(), gated=True)
    for name, files in datasets().items():
        hub.add(name, files, kind="datasets")


@cache
def opt_125m() -> dict[str, bytes]:
    """One pickle, weights in float16, beside those of other frameworks; no safetensors."""
    return {
        **_opt_files(_opt_config()),
        "pytorch_model.bin": _pickled(_opt_weights(_opt_config())),
        "tf_model.h5": b"not read" * 64,
        "flax_model.msgpack": b"not read" * 64,
    }


@cache
def opt_350m() -> dict[str, bytes]:
    """As OPT-350M is: norms after the layers, embeddings of another width, names without prefix."""
    config = _opt_config(do_layer_norm_before=False, word_embed_proj_dim=16)
    weights = {name.removeprefix("model."): value for name, value in _opt_weights(config).items()}
    return {**_opt_files(config), "pytorch_model.bin": _pickled(weights)}


@cache
def sharded_bin() -> dict[str, bytes]:
    """Two pickles and their index."""
    config = _opt_config()
    shards = _halves(_opt_weights(config), "pytorch_model-0000{}-of-00002.bin")
    return {
        **_opt_files(config),
        **{name: _pickled(tensors) for name, tensors in shards.items()},
        "pytorch_model.bin.index.json": _index(shards),
    }


@cache
def llama() -> dict[str, bytes]:
    """One safetensors file, and the same weights as pickles, which nobody should fetch."""
    config, weights = _llama()
    return {
        **_llama_files(config),
        "model.safetensors": safetensors.torch.save(weights, {"format": "pt"}),
        "pytorch_model.bin": _pickled(weights),
        "original/consolidated.00.pth": b"not read" * 64,
    }


@cache
def llama_sharded() -> dict[str, bytes]:
    """Two safetensors files and their index, beside a second copy of the weights."""
    config, weights = _llama()
    shards = _halves(weights, "model-0000{}-of-00002.safetensors")
    return {
        **_llama_files(config),
        **{n: safetensors.torch.save(t, {"format": "pt"}) for n, t in shards.items()},
        "model.safetensors.index.json": _index(shards),
        "consolidated.safetensors": safetensors.torch.save(weights, {"format": "pt"}),
    }


def _opt_config(**changes: Any) -> OPTConfig:
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "word_embed_proj_dim": 32,
        "dtype": "float16",
        "architectures": ["OPTForCausalLM"],
    }
    return OPTConfig(**{**sizes, **changes})


def _opt_weights(config: OPTConfig) -> dict[str, Tensor]:
    """float16 and tied, as published: the head is in the file and shares the embedding's memory."""
    state = _random(config)
    tensors = {name: value.half() for name, value in state.items() if name != "lm_head.weight"}
    return {**tensors, "lm_head.weight": tensors["model.decoder.embed_tokens.weight"]}


def _opt_files(config: OPTConfig) -> dict[str, bytes]:
    token = {"content": "</s>", "lstrip": False, "rstrip": False, "normalized": True}
    names: dict[str, Any] = {"bos_token": token, "eos_token": token, "unk_token": token}
    settings = {
        "errors": "replace",
        **names,
        "pad_token": {**token, "content": "<pad>"},
        "add_prefix_space": False,
        "add_bos_token": True,
        "tokenizer_class": "GPT2Tokenizer",
    }
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    return {
        "README.md": b"# OPT\n",
        "config.json": config.to_json_string().encode(),
        "generation_config.json": _json({"_from_model_config": True}),
        "merges.txt": b"#version: 0.2\n",
        "vocab.json": _json(vocabulary),
        "special_tokens_map.json": _json({**names, "pad_token": "<pad>"}),
        "tokenizer_config.json": _json(settings),
    }


def _llama() -> tuple[LlamaConfig, dict[str, Tensor]]:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        architectures=["LlamaForCausalLM"],
    )
    return config, {name: value.half() for name, value in _random(config).items()}


def _llama_files(config: LlamaConfig) -> dict[str, bytes]:
    """A fast tokenizer's one file."""
    from tokenizers import Tokenizer, decoders, models

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    return {
        "README.md": b"# Llama\n",
        "config.json": config.to_json_string().encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _json(settings),
        "tokenizer.model": b"a sentencepiece model",
        "chat_template.jinja": b"{{ messages }}",
    }


def _random(config: Any) -> dict[str, Tensor]:
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    finally:
        torch.random.set_rng_state(state)
    return dict(model.state_dict())


def _pickled(tensors: Mapping[str, Tensor]) -> bytes:
    stream = io.BytesIO()
    torch.save(dict(tensors), stream)
    return stream.getvalue()


def _halves(weights: Mapping[str, Tensor], name: str) -> dict[str, dict[str, Tensor]]:
    names = sorted(weights)
    parts = (names[: len(names) // 2], names[len(names) // 2 :])
    return {
        name.format(number): {key: weights[key].clone() for key in part}
        for number, part in enumerate(parts, start=1)
    }


def _index(shards: Mapping[str, Mapping[str, Tensor]]) -> bytes:
    places = {key: name for name, tensors in shards.items() for key in tensors}
    return _json({"metadata": {"total_size": 1}, "weight_map": places})


def _json(data: Any) -> bytes:
    return json.dumps(data).encode()


SENTENCES = [
    "A loop repeats a statement until its condition is false, or until it is left.",
    "The method returns a copy of the list, and the list itself is left as it was.",
    "An exception that nobody handles ends the program and prints where it was raised.",
]


@cache
def datasets() -> dict[str, dict[str, bytes]]:
    """The texts and tasks of the papers, a few rows each, laid out as the hub has them."""
    text = [f"{number} {SENTENCES[number % 3]} " * 4 for number in range(12)]
    shard = "".join(json.dumps({"text": line, "url": "", "timestamp": ""}) + "\n" for line in text)
    c4 = gzip.compress(shard.encode(), mtime=0)
    return {
        "Salesforce/wikitext": _configured(
            "wikitext-2-raw-v1",
            {split: [{"text": line} for line in text] for split in ("train", "validation", "test")},
        ),
        "allenai/c4": {
            "README.md": b"# C4\n",
            "en/c4-train.00000-of-01024.json.gz": c4,
            "en/c4-validation.00000-of-00008.json.gz": c4,
        },
        **_tasks(),
    }


# Long: a table, a few rows of every task.
def _tasks() -> dict[str, dict[str, bytes]]:
    """The papers' tasks."""
    return {
        "baber/piqa": _configured(
            None,
            {
                split: [
                    {"goal": SENTENCES[n % 3], "sol1": "Use it.", "sol2": "Leave.", "label": n % 2}
                    for n in range(4)
                ]
                for split in ("train", "validation")
            },
        ),
        "allenai/ai2_arc": {
            **_configured("ARC-Easy", _choices("question")),
            **{
                path: data
                for path, data in _configured("ARC-Challenge", _choices("question")).items()
                if path != "README.md"
            },
            "README.md": _card({"ARC-Easy": ARC_SPLITS, "ARC-Challenge": ARC_SPLITS}),
        },
        "allenai/openbookqa": _configured("main", _choices("question_stem")),
        "allenai/winogrande": _configured(
            "winogrande_xl",
            {
                split: [
                    {
                        "sentence": "The cup did not fit in the box because the _ was too small.",
                        "option1": "cup",
                        "option2": "box",
                        "answer": str(1 + n % 2),
                    }
                    for n in range(4)
                ]
                for split in ("train", "validation")
            },
        ),
        "cais/mmlu": _configured(
            "all",
            {
                split: [
                    {
                        "question": "Which of these is a number?",
                        "subject": "abstract_algebra",
                        "choices": ["one", "a cup", "a box", "a loop"],
                        "answer": n % 4,
                    }
                    for n in range(4)
                ]
                for split in ("test", "validation", "dev")
            },
        ),
    }


ARC_SPLITS = ("train", "validation", "test")


def _choices(question: str) -> dict[str, list[dict[str, Any]]]:
    rows = [
        {
            "id": f"q{n}",
            question: SENTENCES[n % 3],
            "choices": {"text": ["a list", "a copy", "a loop"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[n % 3],
        }
        for n in range(4)
    ]
    return dict.fromkeys(ARC_SPLITS, rows)


def _configured(config: str | None, splits: Mapping[str, list[dict[str, Any]]]) -> dict[str, bytes]:
    """A data set of one configuration: parquet files, and a card that names them."""
    folder = config or "data"
    card = _card({config: tuple(splits)}) if config else b"# A data set\n"
    files = {"README.md": card}
    for split, rows in splits.items():
        stream = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
        files[f"{folder}/{split}-00000-of-00001.parquet"] = stream.getvalue()
    return files


def _card(configs: Mapping[str, tuple[str, ...]]) -> bytes:
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    return "\n".join([*lines, "---", "# A data set", ""]).encode()
