"""A checkpoint of any program as plain floats: a model folder that is measured as any other is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from trinity.harness.audit.audit import layout_of
from trinity.harness.audit.folder import FLOATS, SECTION, Folder
from trinity.harness.audit.layout import Layout, Matrix
from trinity.harness.models import gguf_models
from trinity.harness.models.decoder import skeleton
from trinity.harness.models.folders import CONFIG
from trinity.harness.models.model_config import read_config
from trinity.harness.models.model_files import INDEX, read_json
from trinity.methods.errors import ConfigError, UnsupportedError

SHARD = 1 << 30  # bytes that are held before they are written


class UnreadableError(ConfigError):
    """A checkpoint whose weights are not all known, so that no model can be made of them."""


def write(place: Path, path: Path) -> None:
    """Fill an empty folder with the model that a checkpoint stands for, in float32.

    path: as `where.located` has it.  Codes become the numbers that they stand for; whatever else
    the checkpoint holds (embeddings, norms, biases) is copied.  Inputs that are rounded when the
    model runs are not.  UnreadableError names the first matrix that cannot be decoded.
    """
    if path.is_file():
        _refuse_unreadable(layout_of(path))
        gguf_models.write(place, path)
        return
    folder, layout = Folder(path), layout_of(path)
    if folder.section.get("transform_config"):
        msg = (
            f"audit {path}: its config.json asks for `transform_config`, a rotation at run time, "
            f"which is not done here. Audit it without --dense."
        )
        raise UnsupportedError(msg)
    config = {key: value for key, value in folder.config.items() if key != SECTION}
    text = json.dumps({**config, "dtype": "float32"}, indent=2)
    (place / CONFIG).write_text(text, encoding="utf-8")
    _save(place, _tensors(folder, layout, _transposed(place)))


def rounded_inputs(path: Path) -> bool:
    """Whether a checkpoint asks for inputs that are rounded when the model runs."""
    if path.is_file():
        return False
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    section = config.get(SECTION)
    groups = section.get("config_groups") if isinstance(section, dict) else None
    parts = groups.values() if isinstance(groups, dict) else ()
    return any(isinstance(part, dict) and part.get("input_activations") for part in parts)


def _tensors(folder: Folder, layout: Layout, transposed: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model, under the name it has there."""
    taken: set[str] = set()
    for matrix in layout.matrices():
        if not matrix.quantized:
            continue
        values = _decoded(layout, matrix).to(torch.float32)
        taken |= {name for name in folder.entries if name.startswith(f"{matrix.name}.")}
        taken.discard(f"{matrix.name}.bias")
        yield f"{matrix.name}.weight", values.T if matrix.name in transposed else values
    for name, entry in folder.entries.items():
        if name not in taken and entry.dtype in FLOATS:
            yield name, folder.read(name)


def _decoded(layout: Layout, matrix: Matrix) -> Tensor:
    """float [..., out, in]"""
    why = "; ".join(matrix.faults)
    try:
        values = None if why else layout.decode(matrix).values
    except ConfigError as error:
        values, why = None, str(error)
    if values is not None and bool(torch.isfinite(values).all()):
        return values
    why = why or ("it holds NaN or infinity" if values is not None else "its type is not read here")
    msg = f"{matrix.name} cannot be decoded ({why}), so no model can be made of this checkpoint."
    raise UnreadableError(msg)


def _refuse_unreadable(layout: Layout) -> None:
    for matrix in layout.matrices():
        if matrix.quantized:
            _decoded(layout, matrix)


def _transposed(folder: Path) -> set[str]:
    """GPT-2's linears, which keep [in, out]: by every name that files have for them."""
    model: Any = skeleton(read_config(folder), torch.float32)
    names = {name for name, part in model.named_modules() if isinstance(part, Conv1D)}
    return names | {name.removeprefix(f"{model.base_model_prefix}.") for name in names}


def _save(place: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Safetensors of about a gigabyte each, and their index."""
    files: dict[str, str] = {}
    held: dict[str, Tensor] = {}

    def write_held() -> None:
        name = f"model-{len(set(files.values())):05d}.safetensors"
        save_file(held, place / name, metadata={"format": "pt"})
        files.update(dict.fromkeys(held, name))
        held.clear()

    for name, tensor in tensors:
        held[name] = tensor.contiguous()
        if sum(one.nbytes for one in held.values()) >= SHARD:
            write_held()
    if held:
        write_held()
    (place / INDEX).write_text(json.dumps({"weight_map": files}), encoding="utf-8")
