"""Checkpoints that torch.save wrote, as model folders of ours: read with code execution off.

SLoPe releases `ckpt_{step}.pt`: a dictionary whose `model` is a state dict, beside `optimizer`,
`sampler`, `epoch` and others that only training needs.
"""

import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trinity.harness.store import MANIFEST, StageStore, file_sha256, fingerprint
from trinity.methods.errors import ConfigError

PATTERN = "ckpt_*.pt"
STATE = "model"
BESIDE = (".json", ".model", ".txt")


def checkpoint_file(path: Path) -> Path | None:
    """The checkpoint that a path names: itself, or the only one in its folder; else None.

    ConfigError if a folder without safetensors has several.
    """
    if path.is_file():
        return path if path.suffix == ".pt" else None
    if any(path.glob("*.safetensors")):
        return None
    found = sorted(path.glob(PATTERN))
    if len(found) > 1:
        names = ", ".join(item.name for item in found[:5])
        msg = f"model {path}: holds several checkpoints ({names}). Give the file you want itself."
        raise ConfigError(msg)
    return found[0] if found else None


def state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors under `model`; ConfigError if the file is not such a checkpoint.

    Read with `weights_only=True`: a file that asks for code to be run is refused.
    """
    try:
        data: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        msg = (
            f"checkpoint {path}: cannot be read as plain tensors ({reason}). A file that holds "
            f"other Python objects could run code when it is read; save tensors and numbers only."
        )
        raise ConfigError(msg) from error
    if not isinstance(data, dict) or not isinstance(data.get(STATE), dict):
        found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        msg = (
            f"checkpoint {path}: expected a dictionary with a state dict under '{STATE}', found "
            f"{found}."
        )
        raise ConfigError(msg)
    others = [name for name, value in data[STATE].items() if not isinstance(value, Tensor)]
    if others:
        msg = f"checkpoint {path}: '{STATE}' holds no tensor under {', '.join(others[:3])}."
        raise ConfigError(msg)
    return dict(data[STATE])


def as_folder(path: Path, store: StageStore) -> Path:
    """A checkpoint as a model folder with safetensors: converted once, every tensor kept.

    path: a file beside which config.json and the tokenizer lie
    """
    beside = [
        p
        for p in sorted(path.parent.iterdir())
        if p.suffix in BESIDE and p.is_file() and p.name != MANIFEST
    ]
    inputs = {
        "source": file_sha256(path),
        "beside": fingerprint({p.name: file_sha256(p) for p in beside}),
        "converter": 1,
    }

    def write(folder: Path) -> None:
        # Clones: tied weights share memory, which safetensors refuses.
        tensors = {name: value.contiguous().clone() for name, value in state_dict(path).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for item in beside:
            shutil.copyfile(item, folder / item.name)

    return store.fetch("model", inputs, write)
