"""One compressed linear as a function that dispatches our kernels, in text for IREE."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trinity.lowering.builder import MLIR_TYPES, Builder, Operand, tensor_type
from trinity.lowering.kernels import cpu
from trinity.lowering.kernels.emit import Kernel
from trinity.lowering.kernels.panels import Panels
from trinity.lowering.linalg import scaled_input


@dataclass(frozen=True)
class LinearKernels:
    """A function and the executables that it dispatches, by name."""

    name: str
    function: str
    executables: tuple[tuple[str, str], ...]


def linear_kernels(name: str, panels: Panels, rows: int, flavour: cpu.Flavour) -> LinearKernels:
    """The private function `x: [rows, in], storage... -> y: [rows, out]`, all in float32."""
    writer = _Writer(name, rows, flavour)
    (out, d_in), adapter = panels.format.shape, panels.factors
    arguments = [f"%arg_x: {tensor_type((rows, d_in), 'f32')}"]
    for tensor, of in panels.shapes().items():
        arguments.append(f"%arg_{tensor}: {tensor_type(*of)}")
    result = writer.product(panels, "", "%arg_x", d_in)
    if adapter:
        low = writer.product(adapter["A"], "A_", "%arg_x", d_in)
        padded = adapter["A"].panels * adapter["A"].rows
        result = writer.product(adapter["B"], "B_", low, padded, result)
    result = writer.first_columns(result, panels.panels * panels.rows, out)
    kind = tensor_type((rows, out), "f32")
    function = writer.build.function(name, arguments, result, kind)
    return LinearKernels(name, function, tuple(writer.executables.items()))


class _Writer:
    """Writes the body of one function."""

    def __init__(self, name: str, rows: int, flavour: cpu.Flavour) -> None:
        self.name, self.rows, self.flavour = name, rows, flavour
        self.build = Builder()
        self.executables: dict[str, str] = {}

    def product(
        self, panels: Panels, prefix: str, x: str, stride: int, start: str | None = None
    ) -> str:
        """`x: [rows, stride]` times the panels' weight, added to `start`.  -> [rows, padded out]"""
        name = f"{self.name}_{prefix}kernel"
        stored = [
            (f"%arg_{prefix}{key}", tensor_type(*of)) for key, of in panels.kernel_shapes().items()
        ]
        if panels.format.dtype:
            kernel = cpu.values_product(panels, self.rows, stride, start is not None, name)
            operands = [(x, tensor_type((self.rows, stride), "f32")), *stored]
        else:
            kernel = cpu.Product(panels, self.rows, self.flavour, name, start is not None).write()
            x = self.first_columns(x, stride, panels.format.shape[1])
            operands = [self.activations(panels, prefix, x), *stored]
        outputs = tensor_type((self.rows, panels.panels * panels.rows), "f32")
        if start is not None:
            operands.append((start, outputs))
        return self.dispatch(kernel, (panels.panels, 1), operands, outputs)

    def activations(self, panels: Panels, prefix: str, x: str) -> tuple[str, str]:
        """The input in blocks, padded, and in digits where the kernel takes those."""
        if scale := panels.shapes().get("input_scale"):
            name, kind = f"%arg_{prefix}input_scale", MLIR_TYPES[scale[1]]
            x = scaled_input(self.build, self.rows, x, Operand("s", name, ("k",), scale[0], kind))
        groups, group, rows = panels.groups, panels.group, self.rows
        span = panels.group_blocks * panels.block
        value = self.build.expand(x, (rows, groups * group), [[rows], [groups, group]], "f32")
        value = self.build.pad_end(value, (rows, groups, group), 2, span, "f32")
        parts = [panels.group_blocks, panels.block]
        value = self.build.expand(value, (rows, groups, span), [[rows], [groups], parts], "f32")
        value = self.build.collapse(
            value, [[rows], [groups, panels.group_blocks], [panels.block]], "f32"
        )
        kind = tensor_type((rows, panels.blocks, panels.block), "f32")
        if self.flavour == "floats":
            return value, kind
        words = cpu.block_words(panels.block)
        prepared = tensor_type((rows, panels.blocks, words), "i32")
        kernel = cpu.prepare(rows, panels.blocks, panels.block)
        return self.dispatch(kernel, (panels.blocks, rows), [(value, kind)], prepared), prepared

    def dispatch(
        self, kernel: Kernel, grid: Sequence[int], operands: Sequence[tuple[str, str]], result: str
    ) -> str:
        """Call a kernel on operands of (value, type)."""
        self.executables[kernel.name] = kernel.text()
        sizes = [self.build.value(f"arith.constant {size} : index") for size in grid]
        values, types = zip(*operands, strict=True)
        return self.build.value(
            f"flow.dispatch @{kernel.name}::@{kernel.name}[{', '.join(sizes)}]"
            f"({', '.join(values)}) : ({', '.join(types)}) -> {result}"
        )

    def first_columns(self, value: str, width: int, out: int) -> str:
        """The first `out` columns."""
        if width == out:
            return value
        source = tensor_type((self.rows, width), "f32")
        target = tensor_type((self.rows, out), "f32")
        return self.build.value(
            f"tensor.extract_slice {value}[0, 0] [{self.rows}, {out}] [1, 1] : {source} to {target}"
        )


def with_kernels(text: str, kernels: Iterable[LinearKernels]) -> str:
    """A storage-stage module whose kernel declarations are replaced by what they declare."""
    found = {kernel.name: kernel for kernel in kernels}
    executables = {name: code for kernel in found.values() for name, code in kernel.executables}
    for name in found:
        declaration = rf"^\s*func\.func private @{re.escape(name)}\(.*\) -> [^{{\n]*$\n"
        text = re.sub(declaration, "", text, flags=re.MULTILINE)
    added = "".join([*executables.values(), *(kernel.function for kernel in found.values())])
    head, _, _ = text.rpartition("}")
    return f"{head}{added}}}\n"
