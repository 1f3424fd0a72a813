"""bitsandbytes in 4 bits (nf4, fp4), as transformers saves it.

| tensor                                  | holds                                                 |
|-----------------------------------------|-------------------------------------------------------|
| weight                                  | two codes a byte, the first in its high half          |
| weight.absmax                           | largest value of every block: float32, or codes of it |
| weight.quant_map                        | the sixteen values that a code stands for             |
| weight.nested_absmax, .nested_quant_map | of coded absmax: its own blocks and values            |
| weight.quant_state.bitsandbytes__nf4    | shape, block sizes and types, as JSON in bytes        |
"""

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from trinity.harness.audit.folder import Folder, FolderLayout, shape_faults
from trinity.harness.audit.layout import Decoded, Matrix
from trinity.methods.errors import ConfigError, UnsupportedError

KINDS = ("nf4", "fp4")
STATE = ".weight.quant_state.bitsandbytes__"
BESIDE = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
VALUES = 16


class BitsAndBytes(FolderLayout):
    """Codes of every quantized linear, with the state that says what they are."""

    name = "bitsandbytes"

    def __init__(self, folder: Folder) -> None:
        """UnsupportedError for its 8-bit form."""
        super().__init__(folder)
        if folder.section.get("load_in_8bit") or folder.ends(".SCB"):
            msg = f"audit {folder.path}: is bitsandbytes in 8 bits. Read here: {', '.join(KINDS)}."
            raise UnsupportedError(msg)

    @property
    def claim(self) -> str:
        """Type, and whether block maxima are coded too."""
        section = self.folder.section
        kind = section.get("bnb_4bit_quant_type", "4 bits")
        nested = section.get("bnb_4bit_use_double_quant")
        return f"{kind}, double quantization" if nested else str(kind)

    def matrices(self) -> Sequence[Matrix]:
        """Quantized linears, then the others."""
        entries = self.folder.entries
        codes = [n for n in self.folder.ends(".weight") if entries[f"{n}.weight"].dtype == "U8"]
        return [*map(self._matrix, codes), *self.folder.plain(_parts(self.folder))]

    def _matrix(self, name: str) -> Matrix:
        folder = self.folder
        size = folder.size([f"{name}.weight"])
        parts = _beside(folder, name)
        beside = folder.size(parts)
        key = self._state_key(name)
        if key is None:
            what = "the quant_state is missing, and shape and block size with it"
            return Matrix(name, "4-bit", (size * 2,), size, beside, faults=(what,))
        state = _state(folder, key)
        shape, block = tuple(state["shape"]), int(state["blocksize"])
        blocks = -(-prod(shape) // block)
        expected: dict[str, list[tuple[int, ...]]] = {
            "weight": [(-(-prod(shape) // 2), 1), (-(-prod(shape) // 2),)],
            "weight.absmax": [(blocks,)],
            "weight.quant_map": [(VALUES,)],
        }
        if "nested_blocksize" in state:
            expected["weight.nested_absmax"] = [(-(-blocks // int(state["nested_blocksize"])),)]
            expected["weight.nested_quant_map"] = [(256,)]
        kind = key.rpartition("__")[2]
        faults = shape_faults(folder, name, expected)
        said = folder.section.get("bnb_4bit_quant_type", kind)
        faults += () if kind == said else (f"is {kind}, where the config says {said}",)
        return Matrix(name, f"{kind} group {block}", shape, size, beside, faults=faults)

    def _state_key(self, name: str) -> str | None:
        keys = (f"{name}{STATE}{kind}" for kind in KINDS)
        return next((key for key in keys if key in self.folder.entries), None)

    def decode(self, matrix: Matrix) -> Decoded:
        """Read one."""
        folder, name = self.folder, matrix.name
        if not matrix.quantized:
            return folder.decode_plain(matrix)
        state = _state(folder, str(self._state_key(name)))
        packed = folder.read(f"{name}.weight").flatten()
        codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: matrix.weights]
        scales = folder.read(f"{name}.weight.absmax")
        if "nested_blocksize" in state:
            nested = folder.read(f"{name}.weight.nested_quant_map")[scales.long()]
            outer = folder.read(f"{name}.weight.nested_absmax")
            nested = nested * _spread(outer, int(state["nested_blocksize"]), len(nested))
            scales = nested + float(state.get("nested_offset", 0))
        steps = folder.read(f"{name}.weight.quant_map").float()[codes.long()]
        values = steps * _spread(scales.float(), int(state["blocksize"]), len(steps))
        return Decoded(values.reshape(matrix.shape), codes.reshape(matrix.shape), scales)


def _beside(folder: Folder, name: str) -> list[str]:
    """Tensors of a linear that are no codes."""
    parts = [f"{name}.weight.{part}" for part in BESIDE]
    return [*parts, *(f"{name}{STATE}{kind}" for kind in KINDS)]


def _parts(folder: Folder) -> list[str]:
    return [name for name in folder.entries if ".weight." in name]


# JSON of another program, hence Any.
def _state(folder: Folder, key: str) -> Mapping[str, Any]:
    try:
        state = json.loads(bytes(folder.read(key).tolist()))
        whole = all(isinstance(size, int) and size > 0 for size in state["shape"])
        if not whole or int(state["blocksize"]) < 1:
            raise ValueError(state)
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{folder.path}: {key} is no state of bitsandbytes. Get the checkpoint again."
        raise ConfigError(msg) from error
    found: Mapping[str, Any] = state
    return found


def _spread(scales: Tensor, block: int, count: int) -> Tensor:
    """One scale a block -> one a value."""
    return scales.repeat_interleave(block)[:count]
