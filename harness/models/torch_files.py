"""What torch.save wrote, read with code execution off, and the tensors in it."""

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trinity.harness.models.model_files import damaged
from trinity.methods.errors import ConfigError

# How torch names what a file asks it to call: "Unsupported global: GLOBAL os.system was not ...".
CALLED = re.compile(r"GLOBAL (\S+)")
PROGRAMS = "Cannot use ``weights_only=True`` with"  # TorchScript's archives, and tar's


def read(path: Path, instead: str) -> Any:
    """What a file holds, on disk until a tensor is used (in memory where the file is of torch's old
    form); ConfigError if it cannot be read without running code.

    instead: what to do about a file that would run code
    """
    try:
        return _loaded(path)
    except OSError as error:
        raise ConfigError(damaged(path, error)) from error
    except Exception as error:
        # Whatever the unpickler makes of bytes that are none of its own: IndexError, struct.error.
        raise ConfigError(_refusal(path, error, instead)) from error


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        # Files from before torch 1.6 are no archives, and cannot be mapped.
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


def _refusal(path: Path, error: Exception, instead: str) -> str:
    """One paragraph; torch's own advice, to run the file's code, is no part of it."""
    if PROGRAMS in str(error):
        return f"{path}: is a program of TorchScript or a tar, whose reading runs code. {instead}"
    called = CALLED.search(str(error))
    if called and not _is_cut(path):
        return (
            f"{path}: holds more than tensors, and would run code when it is read ({called[1]}): "
            f"it is refused. {instead}"
        )
    return damaged(path, ValueError("torch finds no tensors in them"))


def _is_cut(path: Path) -> bool:
    """Whether a file of torch's old form, a row of pickles, ends in the midst of one (whose last
    name then looks like one that torch does not know); nothing in it is run.
    """
    if zipfile.is_zipfile(path):
        return False
    try:
        with path.open("rb") as file:
            for _ in ("magic number", "version", "machine", "tensors"):
                for _ in pickletools.genops(file):
                    pass
    except ValueError:
        return True
    return False


def only_tensors(where: str, state: dict[Any, Any]) -> dict[str, Tensor]:
    """A state dict whose values are all tensors that safetensors can hold; ConfigError if not.

    where: 'FILE', for the message
    """
    names = [name for name in state if not isinstance(name, str)]
    if names:
        msg = (
            f"{where}: expected a dictionary of tensors by name, and {names[0]!r} is no name. Save "
            f"the model's `state_dict()`."
        )
        raise ConfigError(msg)
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        msg = (
            f"{where}: expected a dictionary of tensors, holds no tensor under "
            f"{', '.join(others[:3]) or 'any name'}. Save the model's `state_dict()` alone."
        )
        raise ConfigError(msg)
    for name, value in state.items():
        if kind := _unusual(value):
            msg = (
                f"{where}: '{name}' is a {kind} tensor, and a model's weights are plain numbers. "
                f"Save it as a plain one (`to_dense()`, `dequantize()`)."
            )
            raise ConfigError(msg)
    return dict(state)


def _unusual(tensor: Tensor) -> str | None:
    """What keeps a tensor from being stored as its numbers in order; None if nothing does."""
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_meta:
        return "valueless (meta)"
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.dtype in (torch.complex32, torch.complex128):
        return str(tensor.dtype).removeprefix("torch.")
    return None
