"""Weights that are sums of vectors from tables, multiplied on CPUs: `VectorCoded` of 8-bit codes.

A lane is an *input* of a group, unlike in panels: what a code names is loaded as one vector of g
consecutive floats, so nothing is gathered.  For one row of x, g weights of an output take K bytes
of codes, K loads of a vector, K - 1 additions and one multiply-add:

    sum += x[g j : g (j + 1)] * (C_1[code_1] + ... + C_K[code_K])

The other way is a table of dot products: those of every vector with the inputs of each group,
256 K in multiply-adds for any number of outputs, then K loads and K additions for g weights of an
output.  That is as many loads as here, and the table beside them.  docs/kernels-cpu.md has the
numbers.

With more rows, the sum of vectors serves as many of them as there are registers for.  Tables stand
in float32, 8 KiB for each of 8 inputs: K = 2 fills half of a first-level cache.

| tensor        | shape, type                                                      |
|---------------|------------------------------------------------------------------|
| vector_codes  | [tiles, in // g, 4 K], uint8: a tile is 4 consecutive outputs    |
| vector_tables | [K, 256, g], float32                                             |
| vector_scale  | [4 tiles], float                                                 |

Outputs are padded to whole workgroups, 8 tiles each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trinity.lowering.kernels.calls import KernelCode, dispatch, entry_of, linear_arguments
from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import LANES, Buffer, Kernel
from trinity.lowering.mlir.builder import MLIR_TYPES, Builder, tensor_type
from trinity.lowering.weight_storage import CodePath, Shapes, WeightStorage
from trinity.methods.formats import CompressedWeight, VectorCodebook, VectorCoded, WeightFormat

TILE, TILES = 4, 8  # outputs of a tile, tiles of a workgroup
REGISTERS = 32  # of vectors of 8 floats, at most


@dataclass(frozen=True)
class VectorStorage(WeightStorage):
    """Codes in tiles of outputs, and the tables."""

    path: ClassVar[CodePath] = "kernel"
    format: WeightFormat

    @property
    def vectors(self) -> VectorCodebook:
        """What the values are."""
        assert self.format.vectors
        return self.format.vectors

    @property
    def workgroups(self) -> int:
        """Of one product."""
        return -(-self.format.shape[0] // (TILE * TILES))

    @property
    def groups(self) -> int:
        """Vectors of a row."""
        return self.format.shape[1] // self.vectors.group

    @property
    def padded(self) -> int:
        """Outputs, with those that fill the last workgroup."""
        return self.workgroups * TILES * TILE

    def shapes(self) -> Shapes:
        """See `WeightStorage`."""
        of, tiles = self.vectors, self.workgroups * TILES
        return {
            "vector_codes": ((tiles, self.groups, TILE * of.books), torch.uint8),
            "vector_tables": ((of.books, 2**of.bits, of.group), torch.float32),
            "vector_scale": ((self.padded,), getattr(torch, of.scale_dtype)),
        }

    def pack(self, weight: CompressedWeight) -> dict[str, Tensor]:
        """See `WeightStorage`."""
        assert isinstance(weight, VectorCoded)  # another format has another storage
        room = self.padded - weight.shape[0]
        codes = torch.nn.functional.pad(weight.codes, (0, 0, 0, 0, 0, room))
        tiled = codes.view(-1, TILE, self.groups, self.vectors.books).transpose(1, 2)
        return {
            "vector_codes": tiled.flatten(2).contiguous(),
            "vector_tables": weight.codebooks.float().contiguous(),
            "vector_scale": torch.nn.functional.pad(weight.scale.flatten(), (0, room)),
        }

    def unpack(self, tensors: Mapping[str, Tensor]) -> VectorCoded:
        """See `WeightStorage`."""
        of, out = self.vectors, self.format.shape[0]
        tiled = tensors["vector_codes"].view(-1, self.groups, TILE, of.books).transpose(1, 2)
        codes = tiled.reshape(-1, self.groups, of.books)[:out].contiguous()
        tables = tensors["vector_tables"].to(getattr(torch, of.dtype))
        return VectorCoded(codes, tables, tensors["vector_scale"][:out, None].contiguous())


def vector_kernels(
    name: str, stored: VectorStorage, rows: int, instructions: Instructions
) -> KernelCode:
    """The private function `x: [rows, in], storage... -> y: [rows, out]`, all in float32."""
    build, (out, d_in) = Builder(), stored.format.shape
    kernel = Kernel(f"{name}_kernel")
    shapes = stored.shapes()
    kinds = [((rows, d_in), "f32"), *((of, MLIR_TYPES[dtype]) for of, dtype in shapes.values())]
    buffers = [kernel.binding(*kind) for kind in kinds]
    y = kernel.output((rows, stored.padded), "f32")
    _Writer(kernel, stored, buffers, y).write(rows, rows_at_once(stored.vectors, instructions))
    names = ["%arg_x", *(f"%arg_{key}" for key in shapes)]
    operands = [(value, tensor_type(*kind)) for value, kind in zip(names, kinds, strict=True)]
    whole = tensor_type((rows, stored.padded), "f32")
    found = dispatch(build, entry_of(kernel.name), (stored.workgroups, 1), operands, whole)
    kind = tensor_type((rows, out), "f32")
    if stored.padded != out:
        cut = f"tensor.extract_slice {found}[0, 0] [{rows}, {out}] [1, 1]"
        found = build.value(f"{cut} : {whole} to {kind}")
    function = build.function(name, linear_arguments(d_in, rows, shapes), found, kind)
    return KernelCode(name, function, ((kernel.name, kernel.text()),))


def rows_at_once(vectors: VectorCodebook, instructions: Instructions) -> int:
    """Rows of x whose sums for a tile stay in registers, three quarters of which are for sums."""
    registers = min(REGISTERS, instructions.registers * LANES // vectors.group)
    return max(1, registers * 3 // 4 // TILE)


class _Writer:
    """Writes one workgroup's part of a product."""

    def __init__(
        self, kernel: Kernel, stored: VectorStorage, buffers: list[Buffer], y: Buffer
    ) -> None:
        """buffers: x and what is stored, in order"""
        self.kernel, self.stored, self.y = kernel, stored, y
        self.x, self.codes, self.tables, self.scale = buffers
        self.kind = f"vector<{stored.vectors.group}xf32>"

    def write(self, rows: int, at_once: int) -> None:
        """All rows, as many at once as there is room for, and those that are left."""
        whole = rows // at_once * at_once
        for start, stop, step in ((0, whole, at_once), (whole, rows, rows - whole)):
            if start < stop:
                self._rows(start, stop, step)

    def _rows(self, start: int, stop: int, step: int) -> None:
        kernel = self.kernel
        first = kernel.times(kernel.workgroup(0), TILES)
        with kernel.loop(stop, step, start=start) as row, kernel.loop(TILES) as tile:
            here = [kernel.add(row.index, i) for i in range(step)]
            number = kernel.add(first, tile.index)
            sums = self._sums(here, number)
            for t in range(TILE):
                output = kernel.add(kernel.times(number, TILE), t)
                scale = self._scale(output)
                for r, at in enumerate(here):
                    total = kernel.sum_of(sums[t * step + r], self.stored.vectors.group)
                    total = kernel.value(f"arith.mulf {total}, {scale} : f32")
                    self.y.store_scalar(total, [at, output])

    def _sums(self, rows: list[str], tile: str) -> list[str]:
        """Of each output of a tile, for each row, a sum by lane."""
        kernel, of = self.kernel, self.stored.vectors
        zero, kind = kernel.constant("0.0", self.kind), self.kind
        with kernel.loop(self.stored.groups, 1, [(zero, kind)] * (TILE * len(rows))) as loop:
            place = kernel.times(loop.index, of.group)
            inputs = [self.x.load([row, place], kind) for row in rows]
            for t in range(TILE):
                weight = self._vector(tile, loop.index, t)
                for r, x in enumerate(inputs):
                    before = loop.carried[t * len(rows) + r]
                    loop.yielded.append(
                        kernel.value(f"vector.fma {weight}, {x}, {before} : {kind}")
                    )
        return loop.results

    def _vector(self, tile: str, group: str, output: int) -> str:
        """The weights of a group, not yet scaled."""
        kernel, books, total = self.kernel, self.stored.vectors.books, ""
        for k in range(books):
            at = [tile, group, kernel.constant(output * books + k)]
            code = kernel.value(f"arith.index_castui {self.codes.load_scalar(at)} : i8 to index")
            found = self.tables.load([kernel.constant(k), code, kernel.constant(0)], self.kind)
            total = kernel.value(f"arith.addf {total}, {found} : {self.kind}") if k else found
        return total

    def _scale(self, output: str) -> str:
        """Of an output, f32."""
        found, element = self.scale.load_scalar([output]), self.scale.kind[:-1].rpartition("x")[2]
        if element == "f32":
            return found
        return self.kernel.value(f"arith.extf {found} : {element} to f32")
