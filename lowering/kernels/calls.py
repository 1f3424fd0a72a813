"""What a kernel is to the module around it: a function, and executables that it dispatches."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trinity.lowering.mlir.builder import Builder, tensor_type
from trinity.lowering.weight_storage import Shapes


@dataclass(frozen=True)
class KernelCode:
    """A function and the executables that it dispatches, by name."""

    name: str
    function: str
    executables: tuple[tuple[str, str], ...]


def linear_arguments(d_in: int, rows: int, stored: Shapes) -> list[str]:
    """The arguments of a linear's function: `%arg_x: [rows, in]`, and one for each tensor."""
    found = [f"%arg_x: {tensor_type((rows, d_in), 'f32')}"]
    return found + [f"%arg_{name}: {tensor_type(*of)}" for name, of in stored.items()]


def entry_of(executable: str) -> str:
    """The symbol of the entry that has its executable's name."""
    return f"@{executable}::@{executable}"


def dispatch(
    build: Builder,
    entry: str,
    grid: Sequence[int],
    operands: Sequence[tuple[str, str]],
    result: str,
    constants: Sequence[int] = (),
) -> str:
    """Append the call of an entry of an executable on operands of (value, type).

    entry: as `entry_of` writes it, or a path of more symbols
    constants: numbers of 32 bits that the call passes   result: type of what comes back
    """
    return build.value(f"{_call(build, entry, grid, operands, constants)} -> {result}")


def dispatch_pair(
    build: Builder,
    entry: str,
    grid: Sequence[int],
    operands: Sequence[tuple[str, str]],
    results: tuple[str, str],
    constants: Sequence[int] = (),
) -> tuple[str, str]:
    """As `dispatch`, of an entry that makes two tensors.  results: their types"""
    call = _call(build, entry, grid, operands, constants)
    first, second = (f"%pair_{build.count}_{n}" for n in range(2))
    build.count += 1
    build.lines.append(f"{first}, {second} = {call} -> ({', '.join(results)})")
    return first, second


def dispatch_in_place(
    build: Builder,
    entry: str,
    grid: Sequence[int],
    operands: Sequence[tuple[str, str]],
    written: Sequence[str],
    constants: Sequence[int] = (),
) -> list[str]:
    """As `dispatch`, of an entry that writes into some of its operands and makes nothing else.

    written: their values  -> the values after it
    """
    call = _call(build, entry, grid, operands, constants)
    found = [f"{value}_{build.count}" for value in written]
    build.count += 1
    build.lines.append(f"{', '.join(found)} = {call} -> ({', '.join(written)})")
    return found


def _call(
    build: Builder,
    entry: str,
    grid: Sequence[int],
    operands: Sequence[tuple[str, str]],
    constants: Sequence[int],
) -> str:
    sizes = [build.value(f"arith.constant {size} : index") for size in grid]
    numbers = [build.value(f"arith.constant {number} : i32") for number in constants]
    values, types = zip(*operands, strict=True)
    return (
        f"flow.dispatch {entry}[{', '.join(sizes)}]({', '.join([*numbers, *values])}) : "
        f"({', '.join(['i32'] * len(numbers) + list(types))})"
    )


def with_kernels(text: str, kernels: Iterable[KernelCode]) -> str:
    """A storage-stage module whose kernel declarations are replaced by what they declare."""
    found = {kernel.name: kernel for kernel in kernels}
    executables = {name: code for kernel in found.values() for name, code in kernel.executables}
    for name in found:
        declaration = rf"^\s*func\.func private @{re.escape(name)}\(.*\) -> [^{{\n]*$\n"
        text = re.sub(declaration, "", text, flags=re.MULTILINE)
    added = "".join([*executables.values(), *(kernel.function for kernel in found.values())])
    head, _, _ = text.rpartition("}")
    return f"{head}{added}}}\n"
