"""Checkpoints that torch.save wrote, as model folders of ours: read with code execution off.

SLoPe releases `ckpt_{step}.pt`: a dictionary whose `model` is a state dict, beside `optimizer`,
`sampler`, `epoch` and others that only training needs.
"""

import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from trinity.harness.models import torch_files
from trinity.harness.models.folders import companions
from trinity.harness.models.model_files import PICKLE, PICKLE_INDEX, weights_here
from trinity.harness.store import own_code
from trinity.harness.store.stages import StageStore, file_sha256, fingerprint
from trinity.methods.errors import ConfigError

PATTERN = "ckpt_*.pt"
STATE = "model"
INSTEAD = "Save tensors and numbers only."


def checkpoint_file(path: Path) -> Path | None:
    """The checkpoint that a path names: itself, or the only one in its folder; else None.

    ConfigError if a folder without safetensors has several.
    """
    if path.is_file():
        return path if path.suffix == ".pt" else None
    found = sorted(path.glob(PATTERN))
    if not found or not {*weights_here(path)[:1]} <= {PICKLE, PICKLE_INDEX}:
        return None
    if len(found) > 1:
        names = ", ".join(item.name for item in found[:5])
        msg = f"model {path}: holds several checkpoints ({names}). Give the file you want itself."
        raise ConfigError(msg)
    return found[0]


def state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors under `model`; ConfigError if the file is not such a checkpoint.

    Read with `weights_only=True`: a file that asks for code to be run is refused.
    """
    data = torch_files.read(path, INSTEAD)
    if not isinstance(data, dict) or not isinstance(data.get(STATE), dict):
        found = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        msg = (
            f"checkpoint {path}: expected a dictionary with a state dict under '{STATE}', found "
            f"{found}."
        )
        raise ConfigError(msg)
    return torch_files.only_tensors(f"checkpoint {path}: '{STATE}'", data[STATE])


def as_folder(path: Path, store: StageStore) -> Path:
    """A checkpoint as a model folder with safetensors: converted once, every tensor kept.

    path: a file beside which config.json and the tokenizer lie
    """
    beside = companions(path.parent)
    inputs = {
        "source": file_sha256(path),
        "beside": fingerprint({p.name: file_sha256(p) for p in beside}),
        "code": own_code.sha256(as_folder),
    }

    def write(folder: Path) -> None:
        # Clones: tied weights share memory, which safetensors refuses.
        tensors = {name: value.contiguous().clone() for name, value in state_dict(path).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for item in beside:
            shutil.copyfile(item, folder / item.name)

    return store.fill("model", inputs, write)
