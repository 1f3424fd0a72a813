"""GGUF, as llama.cpp stores it: every tensor in blocks of a type of its own, scales inside."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trinity.harness.audit import gguf_header
from trinity.harness.audit.layout import Decoded, Fault, Matrix
from trinity.harness.models.model_files import damaged
from trinity.methods.errors import ConfigError

PLAIN = ("F64", "F32", "F16", "BF16")
# Where the float16 scale of a block lies in it, in bytes.
SCALES = {
    "Q4_0": 0,
    "Q4_1": 0,
    "Q5_0": 0,
    "Q5_1": 0,
    "Q8_0": 0,
    "Q2_K": 80,
    "Q3_K": 108,
    "Q4_K": 0,
    "Q5_K": 0,
    "Q6_K": 208,
    "IQ4_NL": 0,
    "IQ4_XS": 0,
}
# Bits of a code: the rest of a block is scales and minima.
CODE_BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q2_K": 2, "Q3_K": 3}
CODE_BITS |= {"Q4_K": 4, "Q5_K": 5, "Q6_K": 6, "IQ4_NL": 4, "IQ4_XS": 4, "MXFP4": 4}


class Gguf:
    """One file, or the first of several parts."""

    name = "gguf"

    def __init__(self, path: Path) -> None:
        """ConfigError if the file is damaged or no GGUF."""
        from gguf import GGUFReader  # takes numpy along, and only this layout needs it

        self.path = path
        try:
            gguf_header.check(path)
            self._reader = GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        except (ValueError, OSError, IndexError, KeyError, TypeError) as error:
            raise ConfigError(damaged(path, error)) from error

    @property
    def claim(self) -> str:
        """The file type, as llama.cpp calls it."""
        from gguf import LlamaFileType  # as above

        number = self._field("general.file_type")
        try:
            return str(LlamaFileType(number).name).removeprefix("MOSTLY_").removeprefix("ALL_")
        except ValueError:
            return "nothing"

    @property
    def total_bytes(self) -> int:
        """All tensors."""
        return sum(int(tensor.n_bytes) for tensor in self._tensors.values())

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it."""
        return str(self._field("general.architecture"))

    @property
    def blocks(self) -> int | None:
        """Blocks that its metadata says it has."""
        number = self._field(f"{self.architecture}.block_count")
        split = self._field("split.count")
        return number if isinstance(number, int) and split in (None, 0, 1) else None

    def lost(self) -> Sequence[Fault]:
        """Nothing: what a file lists is inside it, or it cannot be read."""
        return []

    def matrices(self) -> Sequence[Matrix]:
        """Every tensor of two dimensions or more."""
        return [self._matrix(name) for name, one in self._tensors.items() if len(one.shape) > 1]

    def _matrix(self, name: str) -> Matrix:
        tensor = self._tensors[name]
        if not tensor.n_elements:
            msg = f"{self.path}: tensor '{name}' has no values. Get the file again."
            raise ConfigError(msg)
        kind = tensor.tensor_type.name
        shape = tuple(int(size) for size in reversed(tensor.shape))
        size, quantized = int(tensor.n_bytes), kind not in PLAIN
        count = int(tensor.n_elements)
        codes = count * CODE_BITS[kind] // 8 if kind in CODE_BITS else size
        form = kind if quantized else kind.lower()
        module = name.removesuffix(".weight")
        return Matrix(module, form, shape, codes, size - codes, quantized)

    def decode(self, matrix: Matrix) -> Decoded:
        """Read one; without values where the library cannot decode its type."""
        import numpy as np  # as above
        from gguf.quants import dequantize

        tensor = self._tensors.get(f"{matrix.name}.weight") or self._tensors[matrix.name]
        scales = self._scales(tensor) if matrix.quantized else None
        try:
            with np.errstate(all="ignore"):  # what is no number is told by who asked
                values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            return Decoded(None, None, scales)
        return Decoded(torch.from_numpy(values.copy()).reshape(matrix.shape), None, scales)

    def _scales(self, tensor: Any) -> Tensor | None:
        """The scale of every block, float16 [blocks].  tensor: the library's own, without types"""
        from gguf.constants import GGML_QUANT_SIZES  # as above

        place = SCALES.get(tensor.tensor_type.name)
        if place is None:
            return None
        block = GGML_QUANT_SIZES[tensor.tensor_type][1]
        stored = torch.from_numpy(tensor.data.reshape(-1, block).copy())
        if not stored.numel():
            msg = f"{self.path}: tensor '{tensor.name}' has no values. Get the file again."
            raise ConfigError(msg)
        return stored[:, place : place + 2].contiguous().view(torch.float16)[:, 0]

    def _field(self, name: str) -> Any:
        """A value of the metadata, of any type, or None."""
        field = self._reader.get_field(name)
        try:
            return None if field is None else field.contents()
        except (ValueError, IndexError, TypeError) as error:  # of texts, no UTF-8
            raise ConfigError(damaged(self.path, error)) from error


def names_of(path: Path, layers: Iterable[str], blocks: int) -> dict[str, str]:
    """What a file calls the layers of a model, of those that llama.cpp has a name for."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map  # as above

    architecture = Gguf(path).architecture
    known = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture), None)
    if known is None:
        return {}
    table = get_tensor_name_map(known, blocks)
    found = {layer: table.get_name(layer) for layer in layers}
    return {layer: name for layer, name in found.items() if name}
