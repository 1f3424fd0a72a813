"""MLIR text for one function: named values, reshapes, and `linalg.generic` over named loops."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch

MLIR_TYPES = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.uint8: "i8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}


def tensor_type(shape: Sequence[int], dtype: torch.dtype | str, encoding: str | None = None) -> str:
    """`tensor<2x3xf32>`, or `tensor<2x3xf32, encoding>`."""
    element = dtype if isinstance(dtype, str) else MLIR_TYPES[dtype]
    ending = f", {encoding}" if encoding else ""
    return f"tensor<{'x'.join([*map(str, shape), element])}{ending}>"


@dataclass
class Builder:
    """Lines of one function, with fresh names."""

    lines: list[str] = field(default_factory=list)
    count: int = 0

    def function(self, name: str, arguments: Sequence[str], result: str, result_type: str) -> str:
        """The lines so far as a private function of one result."""
        return self.function_of(name, arguments, [(result, result_type)])

    def function_of(
        self, name: str, arguments: Sequence[str], results: Sequence[tuple[str, str]]
    ) -> str:
        """The lines so far as a private function.  results: values and types"""
        body = "\n".join(f"  {line}" for line in self.lines)
        values, types = (", ".join(of) for of in zip(*results, strict=True))
        kinds = f"({types})" if len(results) > 1 else types
        return (
            f"func.func private @{name}({', '.join(arguments)}) -> {kinds} {{\n"
            f"{body}\n  return {values} : {types}\n}}\n"
        )

    def value(self, expression: str) -> str:
        """Append `%n = expression`."""
        name = f"%v{self.count}"
        self.count += 1
        self.lines.append(f"{name} = {expression}")
        return name

    def zeros(self, shape: Sequence[int]) -> str:
        """A float32 tensor filled with zero."""
        kind = tensor_type(shape, "f32")
        zero = self.value("arith.constant 0.0 : f32")
        empty = self.value(f"tensor.empty() : {kind}")
        return self.value(f"linalg.fill ins({zero} : f32) outs({empty} : {kind}) -> {kind}")

    def expand(
        self, value: str, shape: Sequence[int], groups: Sequence[Sequence[int]], dtype: str
    ) -> str:
        """Split dimensions: `groups` holds the sizes that each dimension of `shape` becomes."""
        if all(len(group) == 1 for group in groups):
            return value
        sizes = [size for group in groups for size in group]
        source, target = tensor_type(shape, dtype), tensor_type(sizes, dtype)
        return self.value(
            f"tensor.expand_shape {value} {_reassociation(groups)} output_shape {sizes} "
            f": {source} into {target}"
        )

    def collapse(self, value: str, groups: Sequence[Sequence[int]], dtype: str) -> str:
        """Inverse of `expand`."""
        if all(len(group) == 1 for group in groups):
            return value
        source = tensor_type([size for group in groups for size in group], dtype)
        target = tensor_type([prod(group) for group in groups], dtype)
        return self.value(
            f"tensor.collapse_shape {value} {_reassociation(groups)} : {source} into {target}"
        )

    def first_index(self, value: str, shape: Sequence[int], index: int, dtype: str) -> str:
        """`value[index]`.  shape: that of `value`"""
        rest = list(shape[1:])
        if shape[0] == 1:
            return self.collapse(value, [[1, rest[0]], *([n] for n in rest[1:])], dtype)
        offsets, strides = [index] + [0] * len(rest), [1] * len(shape)
        return self.value(
            f"tensor.extract_slice {value}{offsets} {[1, *rest]} {strides} : "
            f"{tensor_type(shape, dtype)} to {tensor_type(rest, dtype)}"
        )

    def pad_end(self, value: str, shape: Sequence[int], axis: int, size: int, dtype: str) -> str:
        """Append zeros along `axis` until it is `size` long."""
        if shape[axis] == size:
            return value
        target = [size if i == axis else n for i, n in enumerate(shape)]
        high = [size - shape[axis] if i == axis else 0 for i in range(len(shape))]
        names = ", ".join(f"%p{self.count}_{i}: index" for i in range(len(shape)))
        zero = self.value(f"arith.constant 0.0 : {dtype}")
        return self.value(
            f"tensor.pad {value} low{[0] * len(shape)} high{high} {{\n  ^bb0({names}):\n"
            f"    tensor.yield {zero} : {dtype}\n  }} : "
            f"{tensor_type(shape, dtype)} to {tensor_type(target, dtype)}"
        )

    def generic(
        self,
        loops: str,
        inputs: Sequence["Operand"],
        output: "Operand",
        reduced: str,
        body: Sequence[str],
        result: str = "%yield",
    ) -> str:
        """`linalg.generic` over named loops.

        loops: names, outermost first; reduced: those that are sums
        body: reads `%in_<name>` and `%acc`, defines `result`
        """
        names = loops.split()
        domain = f"({', '.join(names)})"
        maps = [f"affine_map<{domain} -> ({', '.join(o.loops)})>" for o in (*inputs, output)]
        kinds = ['"reduction"' if name in reduced.split() else '"parallel"' for name in names]
        arguments = [f"%in_{o.name}: {o.dtype}" for o in inputs] + [f"%acc: {output.dtype}"]
        values, types = ", ".join(o.value for o in inputs), ", ".join(o.type for o in inputs)
        lines = "\n".join(f"      {line}" for line in body)
        return self.value(
            f"linalg.generic {{indexing_maps = [{', '.join(maps)}], "
            f"iterator_types = [{', '.join(kinds)}]}} ins({values} : {types}) "
            f"outs({output.value} : {output.type}) {{\n    ^bb0({', '.join(arguments)}):\n{lines}\n"
            f"      linalg.yield {result} : {output.dtype}\n  }} -> {output.type}"
        )


@dataclass(frozen=True)
class Operand:
    """A tensor in a `Builder.generic`, indexed by loops."""

    name: str
    value: str
    loops: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    encoding: str | None = None

    @property
    def type(self) -> str:
        """Its MLIR type."""
        return tensor_type(self.shape, self.dtype, self.encoding)


def widen(name: str, dtype: str, body: list[str]) -> str:
    """Append the cast of `%in_<name>` to float32, if it needs one; the name of the result."""
    if dtype == "f32":
        return f"%in_{name}"
    body.append(f"%{name} = arith.extf %in_{name} : {dtype} to f32")
    return f"%{name}"


def multiply_add(left: str, right: str) -> list[str]:
    """Lines for `%yield = %acc + left * right`."""
    return [
        f"%product = arith.mulf {left}, {right} : f32",
        "%yield = arith.addf %acc, %product : f32",
    ]


def row_product(build: Builder, x: Operand, weight: Operand, start: str | None = None) -> str:
    """X W^T in float32, added to `start` if given.

    x: [m, k]   weight: [n, k], any float   -> [m, n]
    """
    shape = (x.shape[0], weight.shape[0])
    start = start or build.zeros(shape)
    body: list[str] = []
    body += multiply_add("%in_x", widen("w", weight.dtype, body))
    output = Operand("out", start, ("m", "n"), shape, "f32")
    return build.generic("m n k", [x, weight], output, "k", body)


def _reassociation(groups: Sequence[Sequence[int]]) -> str:
    found, start = [], 0
    for group in groups:
        found.append(list(range(start, start + len(group))))
        start += len(group)
    return str(found)
