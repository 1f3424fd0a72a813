"""AMX, Intel's matrix units: tile registers of up to 16 rows of 64 bytes, and products of them."""

from collections.abc import Sequence

from trinity.lowering.kernels.cpu.kernel_text import Buffer, Kernel

TALLEST = 16  # rows of a tile
DEEPEST = 64  # bytes of a row of a tile


class MatrixUnit:
    """The eight tile registers while a kernel is written."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.dense = kernel.constant(DEEPEST, "i64")

    def configure(self, registers: Sequence[tuple[int, int]]) -> None:
        """Set the registers' sizes.  registers: rows, and bytes of a row, of each"""
        kernel = self.kernel
        # Palette 1; bytes of a row from byte 16 on, rows from 48.
        sizes = [1] + [0] * 63
        for i, (height, width) in enumerate(registers):
            sizes[16 + 2 * i], sizes[48 + i] = width, height
        config, zero = kernel.scratch((64,), "i8"), kernel.constant(0)
        kind = "vector<64xi8>"
        config.store(kernel.value(f"arith.constant dense<{sizes}> : {kind}"), [zero], kind)
        pointer = kernel.pointer(config, zero)
        kernel.line(f'llvm.call_intrinsic "llvm.x86.ldtilecfg"({pointer}) : (!llvm.ptr) -> ()')

    def release(self) -> None:
        """Give the registers back."""
        self.kernel.line('llvm.call_intrinsic "llvm.x86.tilerelease"() : () -> ()')

    def zero(self, register: int) -> None:
        """Clear a register."""
        self._one("tilezero", register)

    def load(self, register: int, buffer: Buffer, offset: str, stride: str | None = None) -> None:
        """Rows from memory.  offset: bytes   stride: bytes from row to row, i64; 64 if not given"""
        memory = self.kernel.pointer(buffer, offset), stride or self.dense
        self._one("tileloadd64", register, *memory)

    def store(self, register: int, buffer: Buffer, offset: str, stride: str | None = None) -> None:
        """Rows to memory, as `load`."""
        memory = self.kernel.pointer(buffer, offset), stride or self.dense
        self._one("tilestored64", register, *memory)

    def multiply(self, name: str, target: int, left: int, right: int) -> None:
        """Add the product of two registers to a third.  name: of the instruction"""
        which = ", ".join(self.kernel.constant(n, "i8") for n in (target, left, right))
        self.kernel.line(f'llvm.call_intrinsic "llvm.x86.{name}"({which}) : (i8, i8, i8) -> ()')

    def _one(self, name: str, register: int, *memory: str) -> None:
        operands = ", ".join([self.kernel.constant(register, "i8"), *memory])
        types = "i8, !llvm.ptr, i64" if memory else "i8"
        self.kernel.line(f'llvm.call_intrinsic "llvm.x86.{name}"({operands}) : ({types}) -> ()')
