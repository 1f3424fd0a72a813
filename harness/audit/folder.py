"""A folder of safetensors: what every layout made of them has in common."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from trinity.harness.audit.layout import Decoded, Fault, Matrix
from trinity.harness.models.folders import CONFIG
from trinity.harness.models.model_files import (
    Entry,
    WeightReader,
    named_weights,
    read_json,
)

SECTION = "quantization_config"
BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32}
BITS |= {"F16": 16, "BF16": 16, "I16": 16, "U16": 16}
FLOATS = ("F64", "F32", "F16", "BF16")


class Folder:
    """Tensors and configuration of a model folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
        self._reader = WeightReader(path, named_weights(path, self.config))

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What the headers say of every tensor."""
        return self._reader.entries

    @property
    def section(self) -> Mapping[str, Any]:
        """`quantization_config` of config.json: JSON of any program, hence Any."""
        found = self.config.get(SECTION)
        return found if isinstance(found, dict) else {}

    @property
    def blocks(self) -> int | None:
        """Blocks that config.json says the model has."""
        inner = self.config.get("text_config")
        for config in (self.config, inner if isinstance(inner, dict) else {}):
            for key in ("num_hidden_layers", "n_layer", "num_layers"):
                if isinstance(config.get(key), int):
                    return int(config[key])
        return None

    @cached_property
    def total_bytes(self) -> int:
        """Of all tensors."""
        return self.size(self.entries)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor, None if it is not there."""
        return self.entries[name].shape if name in self.entries else None

    def size(self, names: Collection[str]) -> int:
        """Bytes of those tensors that are there."""
        found = (self.entries[name] for name in names if name in self.entries)
        return sum(prod(entry.shape) * BITS.get(entry.dtype, 8) // 8 for entry in found)

    def read(self, name: str) -> Tensor:
        """One tensor, as stored."""
        return self._reader.read(name)

    def ends(self, end: str) -> list[str]:
        """Modules that have a tensor of this last name."""
        return [name.removesuffix(end) for name in self.entries if name.endswith(end)]

    def lost(self) -> list[Fault]:
        """Tensors that the index names and no file has."""
        index = {path for path in self.path.glob("*.safetensors.index.json")}
        named = {name for path in index for name in read_json(path).get("weight_map", {})}
        used = {entry.file.name for entry in self.entries.values()}
        if not index or (len(used) == 1 and "model.safetensors" in used):
            return []
        return [
            Fault(name, "the index names this tensor, and no file holds it")
            for name in sorted(named - set(self.entries))
        ]

    def plain(self, taken: Collection[str] = ()) -> list[Matrix]:
        """Matrices of plain floats.  taken: tensors that are part of something else"""
        return [
            Matrix(
                name.removesuffix(".weight"),
                entry.dtype.lower(),
                entry.shape,
                self.size([name]),
                quantized=False,
            )
            for name, entry in self.entries.items()
            if name not in taken and len(entry.shape) >= 2 and entry.dtype in FLOATS
        ]

    def decode_plain(self, matrix: Matrix) -> Decoded:
        """A matrix of `plain`."""
        whole = matrix.name
        return Decoded(self.read(whole if whole in self.entries else f"{whole}.weight"))


class FolderLayout:
    """A layout whose matrices are modules of a folder, each with tensors of known last names."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    @property
    def total_bytes(self) -> int:
        """All tensors."""
        return self.folder.total_bytes

    @property
    def blocks(self) -> int | None:
        """Blocks that config.json says the model has."""
        return self.folder.blocks

    def lost(self) -> Sequence[Fault]:
        """Tensors that the index names and no file has."""
        return self.folder.lost()


class QweightLayout(FolderLayout, ABC):
    """A layout whose quantized linears have `qweight` and `scales`.

    parts: last names of all their tensors
    """

    parts: ClassVar[tuple[str, ...]]

    @abstractmethod
    def matrix(self, name: str) -> Matrix:
        """The quantized linear of a module."""

    def lost(self) -> Sequence[Fault]:
        """Also scales that belong to no layer."""
        codes = set(self.folder.ends(".qweight"))
        alone = [name for name in self.folder.ends(".scales") if name not in codes]
        return [*super().lost(), *(Fault(name, "qweight is missing") for name in alone)]

    def matrices(self) -> Sequence[Matrix]:
        """Quantized linears, then the others."""
        names = self.folder.ends(".qweight")
        taken = [name for name in self.folder.entries if name.rpartition(".")[2] in self.parts]
        return [*map(self.matrix, names), *self.folder.plain(taken)]


def shape_faults(
    folder: Folder, name: str, expected: Mapping[str, Sequence[tuple[int, ...]]]
) -> tuple[str, ...]:
    """What is wrong with the tensors of a module.

    expected: last name -> the shapes that it may have
    """
    faults = []
    for part, shapes in expected.items():
        found = folder.shape(f"{name}.{part}")
        if found is None:
            faults.append(f"{part} is missing")
        elif found not in shapes:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            faults.append(f"{part} is {list(found)}, expected {wanted}")
    return tuple(faults)
