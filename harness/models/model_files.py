"""The files of a model folder: which of them hold its weights, and what is wrong with one.

A folder of the hub's cache holds links to blobs: a damaged file is named with its blob, because
both must go before the file can be had again.
"""

import codecs
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from trinity.harness.models.folders import CONFIG
from trinity.harness.store import stages
from trinity.methods.errors import ConfigError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# How AutoGPTQ calls what it saves, where nobody names it: gptq_model-4bit-128g.safetensors.
AUTOGPTQ = ("gptq_model-*.safetensors.index.json", "gptq_model-*.safetensors")
ADAPTER = "adapter_config.json"  # of peft
LONGEST_NAME = 255  # bytes, of Linux's file systems
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Entry:
    """A tensor's file, its type as safetensors calls it ('F32', 'I8'), its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class WeightReader:
    """Tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path, named: str | None = None) -> None:
        """folder: of a model; a pickle checkpoint is refused.  named: as `weight_files` has it"""
        self.files = weight_files(folder, named)

    @cached_property
    def places(self) -> dict[str, Path]:
        """Tensor name -> file."""
        return {name: entry.file for name, entry in self.entries.items()}

    @cached_property
    def entries(self) -> dict[str, "Entry"]:
        """What the files' headers say of every tensor."""
        found = {}
        for path in self.files:
            with opened(path) as stream:
                for name in stream.keys():  # noqa: SIM118  # not a dict
                    part = stream.get_slice(name)
                    found[name] = Entry(path, part.get_dtype(), tuple(part.get_shape()))
        return found

    def read(self, name: str) -> Tensor:
        """One tensor, as stored, and none of its file's pages: a file that is cut short while it is
        mapped kills whoever looks at it, and a mapped shard counts as memory for some limits.
        """
        with opened(self.places[name]) as stream:
            tensor: Tensor = stream.get_tensor(name)
            return tensor.clone()

    def __contains__(self, name: str) -> bool:
        """Whether a tensor of this name is stored."""
        return name in self.places


def weights_of(names: Iterable[str], index: Callable[[str], list[str]]) -> list[str]:
    """The files of a folder or repository that hold a model's weights, in the form that is read,
    index included: safetensors before pickles, and neither if they go by a name of their own.

    index: the files that an index names
    """
    here = sorted(name for name in names if "/" not in name)
    safe = [[n for n in here if fnmatchcase(n, pattern)] for pattern in AUTOGPTQ]
    alone = [found[0] for found in safe if len(found) == 1]
    for name in (WEIGHTS, INDEX, *alone, PICKLE, PICKLE_INDEX):
        if name in here:
            return [name, *(index(name) if name.endswith(".index.json") else ())]
    return []


def weights_here(folder: Path) -> list[str]:
    """`weights_of` a folder on this machine, or what its configuration names instead."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if named := named_weights(folder, config):
        return [named]
    names = [path.name for path in folder.iterdir() if not path.is_dir()]
    return weights_of(names, lambda name: index_files(folder / name))


def named_weights(folder: Path, config: dict[str, Any]) -> str | None:
    """The file or index that a configuration names for its weights; None if it does not."""
    named = config.get("transformers_weights")
    if named is not None and not _names_a_file(named):
        msg = (
            f"model {folder}: its config.json has transformers_weights {named!r}, expected the "
            f"name of a file. {remedy(folder / CONFIG)}"
        )
        raise ConfigError(msg)
    return named


def _names_a_file(name: object) -> bool:
    """Whether a name is of a file in the same folder, that there can be."""
    if not isinstance(name, str) or name in ("", "..") or Path(name).name != name or "\0" in name:
        return False
    try:
        return len(name.encode()) <= LONGEST_NAME
    except UnicodeEncodeError:  # half of a pair that JSON spells by its number
        return False


def index_files(path: Path) -> list[str]:
    """The files that an index names, each once, in order: all are to lie beside it."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        msg = f"{path}: has no `weight_map` that says which file holds which tensor. {remedy(path)}"
        raise ConfigError(msg)
    for name in places.values():
        if not _names_a_file(name):
            msg = (
                f"{path}: is an index of weights that names {name!r} as one of their files, which "
                f"is none beside it. {remedy(path)}"
            )
            raise ConfigError(msg)
    return sorted(set(places.values()))


def weight_files(folder: Path, named: str | None = None) -> list[Path]:
    """The files with a model's weights, chosen as transformers does: others in the folder
    (leftovers of an older save, averaged copies, variants) are no part of the model.

    named: file or index that the configuration names (`transformers_weights`), if it does
    """
    for name in (named,) if named else (WEIGHTS, INDEX):
        path = folder / name
        if path.is_file() or path.is_symlink():
            return _of_index(path) if name.endswith(".index.json") else [_inside(folder, path)]
    for pattern in () if named else AUTOGPTQ:
        found = list(folder.glob(pattern))
        if len(found) == 1:
            return weight_files(folder, found[0].name)
    wanted = named or f"{WEIGHTS} or {INDEX}"
    msg = f"model {folder}: expected {wanted}, found {_instead(folder)}"
    raise ConfigError(msg)


def _of_index(path: Path) -> list[Path]:
    files = [path.parent / name for name in index_files(path)]
    missing = [file.name for file in files if not (file.is_file() or file.is_symlink())]
    if missing:
        msg = (
            f"model {path.parent}: {len(missing)} of the {len(files)} files that {path.name} names "
            f"are missing, {missing[0]} first. Get the model again, or delete {path.name} if it is "
            f"left from an older save."
        )
        raise ConfigError(msg)
    return files


def _inside(folder: Path, path: Path) -> Path:
    if path.parent.absolute() != folder.absolute():
        msg = (
            f"model {folder}: names '{path}' as a file of its weights, which is not in the folder."
        )
        raise ConfigError(msg)
    return path


def _instead(folder: Path) -> str:
    """What a folder without weights has, and what to do."""
    if (folder / ADAPTER).is_file():
        return (
            f"an adapter of peft ({ADAPTER}) and no model. Merge it into the model it "
            "was trained on (`merge_and_unload`) and save that."
        )
    if ggufs := sorted(path.name for path in folder.glob("*.gguf")):
        return f"{ggufs[0]}, which other programs read. Take the safetensors of this model."
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return (
            f"{', '.join(others[:3])} only, which transformers does not take for the model's "
            f"weights. Call the file {WEIGHTS} if it is the model."
        )
    pickles = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")))
    found = (
        f"only {pickles[0]}, a pickle, which can run code when it is read and is refused"
        if pickles
        else "none"
    )
    return (
        f"{found}. Save the model with `save_pretrained(..., safe_serialization=True)` or take a "
        f"revision that has them."
    )


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An open safetensors file (its type is the library's own); ConfigError if it is damaged, or
    lacks a tensor that is asked for.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            yield stream
    except (SafetensorError, OSError) as error:
        raise ConfigError(damaged(path, error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file; ConfigError if it is damaged."""
    try:
        data = stages.read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(damaged(path, error)) from error
    if not isinstance(data, dict):
        msg = f"{path}: holds {type(data).__name__}, expected an object of JSON. {remedy(path)}"
        raise ConfigError(msg)
    return data


def damaged(path: Path, error: Exception) -> str:
    """One paragraph about a file that cannot be read."""
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, PermissionError):
        return f"{path}: may not be read by this user ({reason}). Change its mode or its owner."
    if path.is_symlink() and not path.exists():
        found = f"is a link to {path.readlink()}, which is not there."
    elif not path.exists():
        return f"{path}: there is no such file."
    elif _starts_with(path, codecs.BOM_UTF8):
        return f"{path}: begins with a byte order mark. Save it as UTF-8 without one."
    elif _starts_with(path, LFS):
        return (
            f"{path}: is a pointer of git-lfs, not the file itself. Run `git lfs pull` in its "
            f"folder, or download the model without git."
        )
    elif _is_page(path):
        found = "is a web page, not the file itself: whoever got it was sent to a page instead."
    else:
        size = path.stat().st_size
        found = f"is damaged or cut short: its {size:,} bytes cannot be read: {reason}."
    return f"{path}: {found} {remedy(path)}"


def _starts_with(path: Path, start: bytes) -> bool:
    return _start(path, len(start)) == start


def _is_page(path: Path) -> bool:
    return _start(path, 256).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _start(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def remedy(path: Path) -> str:
    """How to get a damaged file again: what to delete, if it is the hub cache's."""
    if path.parent.parent.name != "snapshots":
        return "Get the file again."
    blob = f" and {path.resolve()}" if path.is_symlink() else ""
    return f"Delete {path}{blob}, which the hub's cache keeps, and run again."
