"""compressed-tensors, as llm-compressor stores it.

| format               | tensors                                                                  |
|----------------------|--------------------------------------------------------------------------|
| pack-quantized       | weight_packed int32 [out, in * bits / 32], weight_shape [2]              |
| int-, naive-, float- | weight int8 or float8 [out, in]                                          |
| nvfp4-pack-quantized | weight_packed uint8 [out, in / 2], scales float8, weight_global_scale    |

Beside each: weight_scale [out, groups], [out, 1] or one number; weight_zero_point as int8 of that
shape, or packed along the outputs; weight_g_idx [in].  A packed code is stored plus half its range.
Codes of 3, 5, 6 or 7 bits cross words, and in older versions did not: those leave bits over.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from trinity.harness.audit.folder import Folder, FolderLayout, shape_faults
from trinity.harness.audit.layout import Decoded, Fault, Matrix
from trinity.methods.errors import ConfigError, UnsupportedError
from trinity.methods.gptq_checkpoint import WORD, unpack_stream

READ = (
    "pack-quantized",
    "int-quantized",
    "naive-quantized",
    "float-quantized",
    "nvfp4-pack-quantized",
    "mixed-precision",
)
BESIDE = (
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "weight_global_scale",
)
OF_INPUTS = ("input_scale", "input_zero_point", "input_global_scale")
NVFP4_GROUP = 16
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class CompressedTensors(FolderLayout):
    """A scale of every quantized linear, and its codes packed or not."""

    name = "compressed-tensors"

    def __init__(self, folder: Folder) -> None:
        """UnsupportedError for its sparse formats."""
        super().__init__(folder)
        self.schemes = [*_schemes(folder)]
        sparse = folder.section.get("sparsity_config") or {}
        formats = [folder.section.get("format"), *(group.get("format") for group in self.groups)]
        formats += [sparse.get("format")] if sparse.get("format") != "dense" else []
        other = next((name for name in formats if name and name not in READ), None)
        if other is not None:
            msg = (
                f"audit {folder.path}: is in the format {other} of compressed-tensors. Read here: "
                f"{', '.join(READ)}."
            )
            raise UnsupportedError(msg)

    @property
    def groups(self) -> list[Mapping[str, Any]]:
        """`config_groups`: JSON of another program, hence Any."""
        return [*(self.folder.section.get("config_groups") or {}).values()]

    @property
    def claim(self) -> str:
        """Bits and group size of every group of the configuration."""
        said = [f"{bits} bits, {_words(size)}" for bits, size in self.schemes]
        return "; ".join(dict.fromkeys(said)) or "nothing"

    def lost(self) -> Sequence[Fault]:
        """Also scales that belong to no layer."""
        there = {*self.folder.ends(".weight_packed"), *self.folder.ends(".weight")}
        alone = [name for name in self.folder.ends(".weight_scale") if name not in there]
        missing = [Fault(name, "weight_packed is missing") for name in alone]
        return [*self.folder.lost(), *missing]

    def matrices(self) -> Sequence[Matrix]:
        """Quantized linears, then the others."""
        entries = self.folder.entries
        packed = self.folder.ends(".weight_packed")
        stored = [
            name
            for name in self.folder.ends(".weight")
            if f"{name}.weight_scale" in entries
            or entries[f"{name}.weight"].dtype in ("I8",)
            or entries[f"{name}.weight"].dtype.startswith("F8")
        ]
        taken = {f"{name}.weight" for name in stored}
        others = ("weight_packed", *BESIDE, *OF_INPUTS)
        taken |= {name for name in entries if name.rpartition(".")[2] in others}
        found = [*map(self._packed, packed), *map(self._stored, stored)]
        return [*found, *self.folder.plain(taken)]

    def _packed(self, name: str) -> Matrix:
        codes = self.folder.entries[f"{name}.weight_packed"]
        if len(codes.shape) != 2:
            msg = f"{self.folder.path}: {name}.weight_packed is {list(codes.shape)}, not a matrix."
            raise ConfigError(msg)
        out, words = codes.shape
        if codes.dtype == "U8":
            groups = (out, words * 2 // NVFP4_GROUP)
            faults = shape_faults(
                self.folder, name, {"weight_scale": [groups], "weight_global_scale": [(1,), ()]}
            )
            return self._matrix(name, "weight_packed", "nvfp4", (out, words * 2), faults)
        if f"{name}.weight_shape" not in self.folder.entries:
            faults = ("weight_shape is missing",)
            return self._matrix(name, "weight_packed", "int?", (out, words), faults)
        shape = tuple(self.folder.read(f"{name}.weight_shape").tolist())
        bits = {said for said, _ in self.schemes} | {4, 8}
        fits = [b for b in bits if len(shape) == 2 and words in _word_counts(shape[1], b)]
        if shape[:1] != (out,) or not fits:
            faults = (f"weight_packed is [{out}, {words}], and weight_shape says {list(shape)}",)
            return self._matrix(name, "weight_packed", "int?", (out, words), faults)
        return self._integers(name, "weight_packed", fits, (out, shape[1]))

    def _stored(self, name: str) -> Matrix:
        entry = self.folder.entries[f"{name}.weight"]
        shape = entry.shape
        if entry.dtype == "I8" and len(shape) == 2:
            return self._integers(name, "weight", [8], (shape[0], shape[1]))
        faults = (
            () if f"{name}.weight_scale" in self.folder.entries else ("weight_scale is missing",)
        )
        return self._matrix(name, "weight", entry.dtype.lower(), shape, faults)

    def _integers(self, name: str, part: str, fits: list[int], shape: tuple[int, int]) -> Matrix:
        """fits: bits of a code by the shapes"""
        said = [bits for bits, _ in self.schemes]
        bits = next((b for b in said if b in fits), fits[0])
        faults = [] if bits in said or part == "weight" else [_claims(bits, said)]
        out, d_in = shape
        sizes = {size for b, size in self.schemes if b == bits or bits not in said}
        expected: list[tuple[int, ...]] = []
        for size in sizes or {None}:
            expected += [(out, -(-d_in // size))] if size else [(out, 1), (out,), (1,), (1, 1), ()]
        faults += shape_faults(self.folder, name, {"weight_scale": expected})
        scale = self.folder.shape(f"{name}.weight_scale")
        groups = scale[1] if scale and len(scale) == 2 else 1
        form = f"int{bits} {_words(-(-d_in // groups) if groups > 1 else None)}"
        zero = self.folder.shape(f"{name}.weight_zero_point")
        packed_zeros = [(words, groups) for words in _word_counts(out, bits)]
        if zero is not None and not faults and zero not in (scale, *packed_zeros):
            faults.append(
                f"weight_zero_point is {list(zero)}, and weight_scale {list(scale or ())}"
            )
        return self._matrix(name, part, form, shape, tuple(faults))

    def _matrix(
        self, name: str, part: str, form: str, shape: tuple[int, ...], faults: tuple[str, ...]
    ) -> Matrix:
        beside = self.folder.size([f"{name}.{end}" for end in BESIDE])
        size = self.folder.size([f"{name}.{part}"])
        return Matrix(name, form, shape, size, beside, faults=faults)

    def decode(self, matrix: Matrix) -> Decoded:
        """Read one."""
        if not matrix.quantized:
            return self.folder.decode_plain(matrix)
        name, entries = matrix.name, self.folder.entries
        scales = self.folder.read(f"{name}.weight_scale").float()
        if matrix.form == "nvfp4":
            scales = scales / self.folder.read(f"{name}.weight_global_scale").float()
            codes = _nibbles(self.folder.read(f"{name}.weight_packed"))
            steps = torch.tensor([*FP4, *(-step for step in FP4)])
            return Decoded(_spread(scales, matrix.shape) * steps[codes.long()], codes, scales)
        if f"{name}.weight_packed" not in entries:
            codes, bits = self.folder.read(f"{name}.weight"), 8
        else:
            bits = int(matrix.form.split()[0].removeprefix("int"))
            packed = self.folder.read(f"{name}.weight_packed")
            codes = _unpacked(packed, bits, matrix.shape[1]) - 2 ** (bits - 1)
        values = codes.float() - self._zero(name, bits, matrix.shape)
        index = f"{name}.weight_g_idx"
        order = self.folder.read(index).long() if index in entries else None
        if order is not None and bool((order < 0).any()):
            order = None  # -1 everywhere: the writer knows no order
        return Decoded(values * _spread(scales, matrix.shape, order), codes, scales)

    def _zero(self, name: str, bits: int, shape: tuple[int, ...]) -> Tensor:
        """Zero points of every weight, or one 0."""
        key = f"{name}.weight_zero_point"
        if key not in self.folder.entries:
            return torch.zeros(1)
        zero = self.folder.read(key)
        if zero.dtype == torch.int32:
            zero = _unpacked(zero.T, bits, shape[0]).T - 2 ** (bits - 1)
        return _spread(zero.float(), shape)


def _schemes(folder: Folder) -> Iterator[tuple[int, int | None]]:
    """(bits, group size or None) of every group of the configuration."""
    groups = folder.section.get("config_groups") or {}
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") or {}
        bits, size = weights.get("num_bits"), weights.get("group_size")
        if isinstance(bits, int) and 0 < bits <= WORD:
            yield bits, size if isinstance(size, int) and size > 0 else None


def _claims(bits: int, said: Sequence[int]) -> str:
    return f"holds {bits} bits a code, where the config says {', '.join(map(str, said)) or 'none'}"


def _words(size: int | None) -> str:
    return f"group {size}" if size else "channel"


def _word_counts(count: int, bits: int) -> tuple[int, int]:
    """Words of so many codes: as a stream of bits, and with none of them in two words."""
    return -(-count * bits // WORD), -(-count // (WORD // bits))


def _unpacked(packed: Tensor, bits: int, count: int) -> Tensor:
    """int32 [n, words] -> int16 [n, count], the first code of a word in its lowest bits"""
    if packed.shape[1] == _word_counts(count, bits)[0]:
        return unpack_stream(packed.T, bits, count).T.to(torch.int16)
    places = range(0, WORD - bits + 1, bits)
    codes = [((packed >> place) & (2**bits - 1)).to(torch.int16) for place in places]
    return torch.stack(codes, -1).flatten(1)[:, :count]


def _nibbles(packed: Tensor) -> Tensor:
    """uint8 [n, m] -> uint8 [n, 2 m]"""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1)


def _spread(scale: Tensor, shape: Sequence[int], order: Tensor | None = None) -> Tensor:
    """Scales [out, groups], [out] or [1] -> of every weight.  order: int64 [in], group of each"""
    if prod(scale.shape) == 1:
        return scale.reshape(1, 1)
    scale = scale.reshape(len(scale), -1)
    if order is None:
        order = torch.arange(shape[1]) // -(-shape[1] // scale.shape[1])
    return scale[:, order]
