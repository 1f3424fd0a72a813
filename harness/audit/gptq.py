"""GPTQ, as AutoGPTQ and GPTQModel store it (the tensors: `methods/gptq_checkpoint.py`)."""

from functools import cached_property

import torch

from trinity.harness.audit.folder import Folder, QweightLayout, shape_faults
from trinity.harness.audit.layout import Decoded, Matrix
from trinity.harness.models.model_files import read_json
from trinity.methods.errors import ConfigError
from trinity.methods.formats.quantized import BITS
from trinity.methods.gptq_checkpoint import PARTS, WORD, unpack_stream
from trinity.methods.gptq_settings import FILES, GptqSettings, LayerSettings, read_settings


class Gptq(QweightLayout):
    """`qweight`, `qzeros`, `scales` and `g_idx` of every quantized linear."""

    name = "gptq"
    parts = PARTS

    @cached_property
    def _settings(self) -> GptqSettings:
        paths = [self.folder.path / name for name in FILES]
        return read_settings({path.name: read_json(path) for path in paths if path.is_file()})

    @property
    def claim(self) -> str:
        """Bits and group size."""
        said = self._settings.base
        return f"{said.bits} bits, {_group(said.group_size)}" if said.bits else "nothing"

    def matrix(self, name: str) -> Matrix:
        """See `QweightLayout`."""
        folder = self.folder
        said, faults = LayerSettings(), []
        try:
            said = self._settings.of_layer(name)
        except ConfigError as error:
            faults.append(str(error))
        (rows, out), bits = _two(folder, f"{name}.qweight"), said.bits
        stored = _bits(folder, name, out) or bits or 4
        if bits and stored != bits:
            faults.append(f"holds {stored} bits a code, where {said.where} says {bits}")
        d_in = rows * WORD // stored
        groups = said.groups(d_in)
        scales = folder.shape(f"{name}.scales")
        if groups is None:
            groups = scales[0] if scales else 1
        expected: dict[str, list[tuple[int, ...]]] = {
            "scales": [(groups, out)],
            "qzeros": [(groups, out * stored // WORD)],
        }
        if folder.shape(f"{name}.g_idx") is not None:
            expected["g_idx"] = [(d_in,)]
        elif said.desc_act:
            faults.append("g_idx is missing, and the order of the inputs with it")
        return Matrix(
            name,
            f"int{stored} {_group(-1 if groups == 1 else said.group_size or d_in // groups)}",
            (out, d_in),
            folder.size([f"{name}.qweight"]),
            folder.size([f"{name}.{part}" for part in PARTS if part != "qweight"]),
            faults=(*faults, *shape_faults(folder, name, expected)),
        )

    def decode(self, matrix: Matrix) -> Decoded:
        """Read one."""
        folder, name, (out, d_in) = self.folder, matrix.name, matrix.shape
        if f"{name}.qweight" not in folder.entries:
            return folder.decode_plain(matrix)
        packed = folder.read(f"{name}.qweight")
        scales = folder.read(f"{name}.scales")
        bits = len(packed) * WORD // d_in
        codes = unpack_stream(packed, bits, d_in).T
        zero = unpack_stream(folder.read(f"{name}.qzeros").T, bits, out).T.float()
        if self._settings.version != "gptq_v2":
            zero = zero + 1
        index = torch.arange(d_in) // -(-d_in // len(scales))
        if f"{name}.g_idx" in folder.entries:
            index = folder.read(f"{name}.g_idx").long()
            if not bool(((index >= 0) & (index < len(scales))).all()):
                msg = f"g_idx names groups past the {len(scales)} that scales hold"
                raise ConfigError(msg)
        values = scales.float().T[:, index] * (codes.float() - zero.T[:, index])
        return Decoded(values, codes, scales)


def _two(folder: Folder, name: str) -> tuple[int, int]:
    """Shape of a tensor that is a matrix in this layout."""
    shape = folder.entries[name].shape
    if len(shape) != 2:
        msg = f"{folder.path}: {name} is {list(shape)}, and codes of this layout are a matrix."
        raise ConfigError(msg)
    return shape[0], shape[1]


def _bits(folder: Folder, name: str, out: int) -> int | None:
    """Bits of a code as the shapes say: by the inputs that g_idx lists, or by the zero points."""
    rows = folder.entries[f"{name}.qweight"].shape[0]
    index, zeros = folder.shape(f"{name}.g_idx"), folder.shape(f"{name}.qzeros")
    answers = [rows * WORD / index[0]] if index and index[0] else []
    answers += [zeros[1] * WORD / out] if zeros and len(zeros) == 2 else []
    return next((bits for bits in BITS if bits in answers), None)


def _group(size: int | None) -> str:
    return "channel" if size in (None, -1) else f"group {size}"
