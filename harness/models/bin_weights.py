"""Weights that torch.save wrote (`pytorch_model.bin`), read with code execution off and kept as
safetensors.

One file is read at a time and its tensors are written in files of at most `SHARD_BYTES`, so that
memory holds one shard of the source and one of ours, whatever the model's size.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from trinity.harness.models import torch_files
from trinity.harness.models.folders import companions
from trinity.harness.models.model_files import PICKLE, PICKLE_INDEX, damaged, weights_here
from trinity.harness.store.stages import StageStore, file_sha256, fingerprint
from trinity.methods.errors import ConfigError

SHARD_BYTES = 2 * 1024**3
CONVERTER = 1
INSTEAD = (
    "Save the model with `save_pretrained(..., safe_serialization=True)`, or take a revision that "
    "has safetensors."
)


def files_of(folder: Path) -> tuple[Path, ...]:
    """The pickles that hold a folder's weights; none if safetensors do, or nothing does."""
    chosen = weights_here(folder)
    if not chosen or chosen[0] not in (PICKLE, PICKLE_INDEX):
        return ()
    files = tuple(folder / name for name in chosen if name != PICKLE_INDEX)
    absent = [path for path in files if not path.is_file()]
    if absent and absent[0].is_symlink():
        raise ConfigError(damaged(absent[0], FileNotFoundError()))
    if absent:
        msg = (
            f"model {folder}: {PICKLE_INDEX} names {', '.join(p.name for p in absent[:3])}, which "
            f"is not there. Get the missing files."
        )
        raise ConfigError(msg)
    return files


def as_folder(
    sources: Sequence[Path],
    store: StageStore,
    inputs: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Pickles as a model folder with safetensors: converted once, every tensor kept.

    sources: beside config.json and the tokenizer
    inputs: what the result is known by, the files' content if None   say: told of the work
    """
    beside = companions(sources[0].parent)
    if inputs is None:
        inputs = {
            "sources": {path.name: file_sha256(path) for path in sources},
            "beside": fingerprint({path.name: file_sha256(path) for path in beside}),
            "converter": CONVERTER,
        }

    def write(folder: Path) -> None:
        say(f"converting {', '.join(path.name for path in sources[:3])} to safetensors, once")
        for path in beside:
            shutil.copyfile(path, folder / path.name)
        write_shards((item for path in sources for item in tensors_of(path).items()), folder)

    return store.fill("model", inputs, write)


def tensors_of(path: Path) -> dict[str, Tensor]:
    """A pickled state dict."""
    data = torch_files.read(path, INSTEAD)
    if not isinstance(data, dict):
        msg = f"{path}: holds {type(data).__name__}, expected a dictionary of tensors."
        raise ConfigError(msg)
    return torch_files.only_tensors(str(path), data)


def write_shards(
    tensors: Iterator[tuple[str, Tensor]], folder: Path, limit: int = SHARD_BYTES
) -> None:
    """Tensors into safetensors files of at most `limit` bytes each, and their index if several."""
    parts: list[dict[str, int]] = []
    held: dict[str, Tensor] = {}

    def write() -> None:
        # Clones: tied weights share memory, which safetensors refuses.
        copies = {name: value.detach().contiguous().clone() for name, value in held.items()}
        save_file(copies, folder / _part(len(parts)), metadata={"format": "pt"})
        parts.append({name: value.nbytes for name, value in copies.items()})
        held.clear()

    for name, value in tensors:
        if name in held or any(name in part for part in parts):
            msg = f"{folder.name}: tensor '{name}' is in two of the pickled files."
            raise ConfigError(msg)
        if held and sum(v.nbytes for v in held.values()) + value.nbytes > limit:
            write()
        held[name] = value
    write()
    _name(parts, folder)


def _part(number: int) -> str:
    return f"part-{number:05d}"


def _name(parts: list[dict[str, int]], folder: Path) -> None:
    """Give files their final names, which tell how many there are."""
    if len(parts) == 1:
        (folder / _part(0)).rename(folder / "model.safetensors")
        return
    names = [f"model-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)]
    for number, name in enumerate(names):
        (folder / _part(number)).rename(folder / name)
    places = {key: name for part, name in zip(parts, names, strict=True) for key in part}
    total = sum(size for part in parts for size in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    text = json.dumps(index, indent=1) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
