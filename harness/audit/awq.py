"""AWQ, as AutoAWQ stores it for its `gemm` kernels.

| tensor  | shape, type                 | holds                                           |
|---------|-----------------------------|-------------------------------------------------|
| qweight | [in, out / 8], int32        | eight outputs a word, in the order 0 2 4 6 1 3 5 7 |
| qzeros  | [groups, out / 8], int32    | zero points in the same order                   |
| scales  | [groups, out], float16      | step of every group                             |
"""

import torch
from torch import Tensor

from trinity.harness.audit.folder import Folder, QweightLayout, shape_faults
from trinity.harness.audit.layout import Decoded, Matrix
from trinity.harness.models.model_files import read_json
from trinity.methods.errors import ConfigError, UnsupportedError

PARTS = ("qweight", "qzeros", "scales")
OWN_FILE = "quant_config.json"  # of AutoAWQ, where config.json says nothing
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BITS = 4


class Awq(QweightLayout):
    """`qweight`, `qzeros` and `scales` of every quantized linear."""

    name = "awq"
    parts = PARTS

    def __init__(self, folder: Folder) -> None:
        """UnsupportedError for the layouts of other kernels."""
        super().__init__(folder)
        path = folder.path / OWN_FILE
        said = folder.section or (read_json(path) if path.is_file() else {})
        version = str(said.get("version", "gemm")).lower()
        bits = said.get("bits", said.get("w_bit", BITS))
        if version != "gemm" or bits != BITS:
            msg = (
                f"audit {folder.path}: is AWQ of {bits} bits for `{version}` kernels. Read here: "
                f"{BITS} bits for `gemm`."
            )
            raise UnsupportedError(msg)
        size = said.get("group_size", said.get("q_group_size"))
        self.group_size = size if isinstance(size, int) and size > 0 else None

    @property
    def claim(self) -> str:
        """Bits and group size."""
        return f"{BITS} bits, " + (f"group {self.group_size}" if self.group_size else "channel")

    def matrix(self, name: str) -> Matrix:
        """See `QweightLayout`."""
        shape = self.folder.entries[f"{name}.qweight"].shape
        if len(shape) != 2:
            msg = f"{self.folder.path}: {name}.qweight is {list(shape)}, expected a matrix."
            raise ConfigError(msg)
        d_in, words = shape
        out = words * len(ORDER)
        groups = -(-d_in // self.group_size) if self.group_size else 1
        expected = {"scales": [(groups, out)], "qzeros": [(groups, words)]}
        return Matrix(
            name,
            f"int{BITS} " + (f"group {self.group_size}" if self.group_size else "channel"),
            (out, d_in),
            self.folder.size([f"{name}.qweight"]),
            self.folder.size([f"{name}.qzeros", f"{name}.scales"]),
            faults=shape_faults(self.folder, name, expected),
        )

    def decode(self, matrix: Matrix) -> Decoded:
        """Read one."""
        folder, name = self.folder, matrix.name
        if f"{name}.qweight" not in folder.entries:
            return folder.decode_plain(matrix)
        codes, zero = (_unpacked(folder.read(f"{name}.{part}")) for part in ("qweight", "qzeros"))
        scales = folder.read(f"{name}.scales")
        index = torch.arange(len(codes)) // (self.group_size or len(codes))
        values = scales.float()[index] * (codes.float() - zero.float()[index])
        return Decoded(values.T, codes.T, scales)


def _unpacked(packed: Tensor) -> Tensor:
    """int32 [n, words] -> uint8 [n, words * 8]"""
    codes = torch.empty(*packed.shape, len(ORDER), dtype=torch.uint8)
    for place, column in enumerate(ORDER):
        codes[..., column] = ((packed >> BITS * place) & (2**BITS - 1)).to(torch.uint8)
    return codes.flatten(1)
