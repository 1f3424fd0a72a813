"""What a folder that a user names holds, told from its files alone: nothing heavy is loaded."""

from pathlib import Path
from typing import Any

from trinity.harness.store.stages import MANIFEST, read_json
from trinity.methods.errors import ConfigError, nearest

CONFIG, MODULE, LOWERED = "config.json", "module.vmfb", "lowered.json"
OURS = "trinity"
ORIGIN = "trinity-export.json"  # which checkpoint an export is of
# That a checkpoint is exported in.
LAYOUTS = ("compressed-tensors", "gptq", "gptq_v2", "huggingface")
TEMPLATES = "additional_chat_templates"  # a folder, of models with several
# What a model folder holds beside its weights: configuration, templates, tokenizers of every kind.
BESIDE = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.bpe", "*.vocab", "*.spm")

# What `lowered.json` says, and its types in JSON: logits are compared where the target runs.
FACTS = {
    "target": (str,),
    "checkpoint": (dict,),
    "vocabulary": (int,),
    "logit_errors": (dict, type(None)),
}
LOWER_AGAIN = "Lower the checkpoint again."


def companions(folder: Path) -> list[Path]:
    """Files that go with a model whatever its weights are stored as, and its configuration."""
    listed = {path for pattern in BESIDE for path in folder.glob(pattern) if path.is_file()}
    return sorted(
        path for path in listed if not path.name.endswith(".index.json") and path.name != MANIFEST
    )


def is_compressed(folder: Path) -> bool:
    """Whether a folder is one of our checkpoints rather than a plain model."""
    return _quantized_by(folder) == OURS


def check_compressed(folder: Path, command: str) -> None:
    """ConfigError unless a folder is one of our checkpoints: it says what is there instead.

    command: what needs one, for the message: 'lower'
    """
    where = f"{command} {folder}"
    need = "It takes a folder made by `trinity compress`"
    if not folder.exists():
        msg = f"{where}: there is no such folder. {need}."
    elif not folder.is_dir():
        msg = f"{where}: is a file. {need}."
    elif is_lowered(folder):
        msg = f"{where}: is a compiled module already, made by `trinity lower`. {need}."
    elif not (folder / CONFIG).is_file():
        msg = f"{where}: holds no {CONFIG}. {need}."
    elif is_compressed(folder):
        return
    else:
        msg = f"{where}: holds a model that is not compressed. {need}."
    raise ConfigError(msg)


def check_layout(name: str) -> None:
    """ConfigError for a layout that no checkpoint is exported in."""
    if name not in LAYOUTS:
        msg = (
            f"--format {name}: there is no such format.{nearest(name, list(LAYOUTS))} "
            f"Formats: {', '.join(LAYOUTS)}."
        )
        raise ConfigError(msg)


def is_lowered(folder: Path) -> bool:
    """Whether a folder holds a compiled module, as `trinity lower` makes it."""
    return (folder / MODULE).is_file()


def lowered_facts(folder: Path) -> dict[str, Any]:
    """What `lowered.json` says beside a module; ConfigError if it is not there or damaged."""
    path = folder / LOWERED
    try:
        facts = read_json(path)
    except (OSError, ValueError) as error:
        msg = (
            f"{folder}: holds {MODULE}, and its {LOWERED} cannot be read ({error}). Lower the "
            f"checkpoint again, or evaluate the checkpoint itself: `trinity eval CHECKPOINT "
            f"--engine iree`."
        )
        raise ConfigError(msg) from error
    if not isinstance(facts, dict):
        msg = f"{path}: holds {type(facts).__name__}, expected an object. {LOWER_AGAIN}"
        raise ConfigError(msg)
    if missing := sorted(FACTS.keys() - facts.keys()):
        msg = f"{path}: lacks {', '.join(missing)}. {LOWER_AGAIN}"
        raise ConfigError(msg)
    wrong = [name for name, kinds in FACTS.items() if type(facts[name]) not in kinds]
    if not wrong and not isinstance(facts["checkpoint"].get("name"), str):
        wrong = ["checkpoint"]
    if wrong:
        msg = f"{path}: has {wrong[0]} {facts[wrong[0]]!r}, which is none. {LOWER_AGAIN}"
        raise ConfigError(msg)
    return facts


def check_module(folder: Path, engine: str, target: str) -> None:
    """ConfigError unless a compiled module can be evaluated as it is asked for."""
    facts = lowered_facts(folder)
    if engine != "iree":
        msg = (
            f"eval {folder}: holds a compiled module, which torch does not run. Give --engine "
            f"iree, or evaluate the checkpoint that it was made from "
            f"('{facts['checkpoint']['name']}')."
        )
        raise ConfigError(msg)
    if target != facts["target"]:
        msg = (
            f"eval {folder}: its module is compiled for {facts['target']}, not for {target}. "
            f"Give --target {facts['target']}."
        )
        raise ConfigError(msg)


def _quantized_by(folder: Path) -> str | None:
    """`quant_method` of a folder's config.json; None without one, or if it cannot be read."""
    try:
        config = read_json(folder / CONFIG)
        return str(config["quantization_config"]["quant_method"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
