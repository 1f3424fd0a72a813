"""The tokenizer of a model folder."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from trinity.harness.models.folders import CONFIG, ORIGIN, companions
from trinity.harness.models.model_files import damaged, remedy
from trinity.harness.store.stages import read_json
from trinity.methods.errors import ConfigError

TOKENIZER = "tokenizer.json"
# What a tokenizer is read from, one of them at least; some kinds are happy with none, and useless.
VOCABULARIES = (TOKENIZER, "*.model", "*.tiktoken", "vocab.json", "vocab.txt", "tekken.json")
# What a checkpoint says of its weights, in its configuration and beside it.
_OF_WEIGHTS = {"quantization_config", "dtype", "tie_word_embeddings"}
_BESIDE_WEIGHTS = {"trinity.json", "timing.json", ORIGIN}


@dataclass(frozen=True)
class _Files:
    """Of a tokenizer.  sha256: of what they say; equal files, wherever they lie, are one of it"""

    folder: Path = field(compare=False)
    sha256: str


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer of a folder, read once for all checkpoints of a model; not to be changed.

    transformers has no common type for it; a folder's own code is never run.
    """
    if not any(any(folder.glob(pattern)) for pattern in VOCABULARIES):
        msg = (
            f"model {folder}: has no tokenizer (no {TOKENIZER}, tokenizer.model or vocab.json). "
            f"Get these files from where the model is from."
        )
        raise ConfigError(msg)
    return _read(_Files(folder, _sha256(folder)))


@lru_cache(maxsize=4)
def _read(files: _Files) -> Any:
    # Imported here: it takes seconds that a folder without a tokenizer need not wait for.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(files.folder, trust_remote_code=False)
    except Exception as error:
        # The library raises what its parsers raise, a bare Exception too.
        raise ConfigError(_unusable(files.folder, error)) from error


def _sha256(folder: Path) -> str:
    """Over all that a tokenizer may be read from: all that is beside the weights."""
    digest = hashlib.sha256()
    for path in companions(folder):
        if path.name not in _BESIDE_WEIGHTS:
            said = _without_weights(path) if path.name == CONFIG else path.read_bytes()
            digest.update(f"{path.name} {len(said)} ".encode() + said)
    return digest.hexdigest()


def _without_weights(path: Path) -> bytes:
    """A configuration without what depends on how the weights are stored."""
    said = path.read_bytes()
    try:
        config = json.loads(said)
        kept = {key: config[key] for key in config.keys() - _OF_WEIGHTS}
    except (ValueError, AttributeError, RecursionError):  # damaged: whoever reads it says so
        return said
    return json.dumps(kept, sort_keys=True).encode()


def _unusable(folder: Path, error: Exception) -> str:
    """One paragraph about a tokenizer that cannot be loaded."""
    for path in sorted(folder.glob("*.json")):
        if not path.name.startswith(("tokenizer", "vocab", "special_tokens", "added_tokens")):
            continue
        try:
            read_json(path)
        except (OSError, ValueError) as damage:
            return damaged(path, damage)
    reason = " ".join(str(error).split())
    if "custom code" in reason:
        return (
            f"model {folder}: its tokenizer comes with code of its own, which is never run here. "
            f"Take a version of it that is a {TOKENIZER} alone."
        )
    place = folder / TOKENIZER
    what = remedy(place) if place.exists() else "Get tokenizer.json from where the model is from."
    return f"model {folder}: transformers cannot load its tokenizer ({reason[:200]}). {what}"
