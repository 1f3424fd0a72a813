"""Kernels of several phases: what one phase writes, the next one reads, within one dispatch.

Between two dispatches every worker waits for the others and is woken again, which takes
microseconds; a decoder block at one token is a dozen steps of about as many.  Here the workers of
one dispatch go through all steps: they claim the tiles of a phase one by one from a counter, and
wait until as many are done as there are.

Nobody waits for a worker that never started: a tile that was not claimed is claimed by whoever is
there, so one worker alone gets through all phases, and workers may come late or not at all.
"""

from collections.abc import Callable, Mapping, Sequence

from trinity.lowering.kernels.cpu.instructions import Instructions
from trinity.lowering.kernels.cpu.kernel_text import Buffer, Kernel
from trinity.lowering.mlir.builder import Builder, tensor_type

Part = tuple[int, Callable[[str], None]]
"""A number of tiles, and what writes the code of one, given its number."""

# Workgroups of a dispatch, and so the most workers that take part.  Where a machine has fewer,
# those that come last find all done.
WORKGROUPS = 32
LINE = 16  # words of a cache line; counters of their own lines do not disturb each other
CLAIMED, DONE = 0, 1
IN_PLACE = ("keys", "values", "counters")  # operands of a dispatch that it writes


class Phases:
    """Writes phases into a kernel; counters: int32 [phases, 2, LINE], zero at the start."""

    def __init__(
        self, kernel: Kernel, counters: Buffer, count: int, instructions: Instructions
    ) -> None:
        """count: of all phases"""
        self.kernel, self.counters, self.count = kernel, counters, count
        self.pause, self.written = instructions.pause, 0

    def write(self, parts: Sequence[Part]) -> None:
        """The next phase: its tiles are those of all parts, in that order."""
        kernel, phase = self.kernel, self.written
        self.written += 1
        tiles = kernel.constant(sum(number for number, _ in parts))
        more = f"arith.cmpi ult, {{}}, {tiles} : index"
        with kernel.repeat(self._add(phase, CLAIMED, 1), more) as tile:
            first = 0
            for number, write in parts:
                with kernel.when(_within(kernel, tile, first, number)):
                    write(kernel.value(f"arith.subi {tile}, {kernel.constant(first)} : index"))
                first += number
            kernel.value(self._add(phase, DONE, 1))
        # Adding nothing reads what others wrote, and orders what is read afterwards.
        with kernel.repeat(self._add(phase, DONE, 0), more):
            if self.pause:
                self.pause(kernel)

    def unfinished(self, tiles: int) -> str:
        """Whether the last phase, of so many tiles, is not over.  -> i1"""
        kernel = self.kernel
        done = kernel.value(self._add(self.count - 1, DONE, 0))
        return kernel.value(f"arith.cmpi ult, {done}, {kernel.constant(tiles, 'i32')} : i32")

    def _add(self, phase: int, which: int, number: int) -> str:
        """An expression: add to a counter, and get what it was."""
        kernel = self.kernel
        at = ", ".join(kernel.constant(i) for i in (phase, which, 0))
        return (
            f"memref.atomic_rmw addi {kernel.constant(number, 'i32')}, {self.counters.name}[{at}] "
            f": (i32, {self.counters.kind}) -> i32"
        )


def phased_function(
    name: str,
    kernel: Kernel,
    shapes: Mapping[str, tuple[tuple[int, ...], str]],
    operands: Sequence[str],
    phases: int,
    scratch_bytes: int,
) -> str:
    """The private function `(*shapes) -> out, keys, values` that dispatches a kernel of phases.

    shapes: of the arguments, as shape and element; the result is like the first one, `keys` and
    `values` are written in place
    operands: names in the order of the kernel's bindings, 'counters' among them
    """
    build = Builder()
    names = {key: f"%arg_{i}" for i, key in enumerate(shapes)} | {"counters": "%counters"}
    types = {key: tensor_type(*of) for key, of in shapes.items()}
    types["counters"] = tensor_type((phases, 2, LINE), "i32")
    zero = build.value("arith.constant 0 : i32")
    build.lines.append(f"%counters = flow.tensor.splat {zero} : {types['counters']}")
    workgroups = build.value(f"arith.constant {WORKGROUPS} : index")
    one = build.value("arith.constant 1 : index")
    result = types[next(iter(shapes))]
    tied = ", ".join(names[key] for key in operands if key in IN_PLACE)
    found = ", ".join(f"%new_{key}" for key in operands if key in IN_PLACE)
    build.lines.append(
        f"{found}, %out, %scratch = flow.dispatch @{kernel.name}::@{kernel.name}"
        f"[{workgroups}, {one}]({', '.join(names[key] for key in operands)}) : "
        f"({', '.join(types[key] for key in operands)}) -> "
        f"({tied}, {result}, {tensor_type((scratch_bytes,), 'i8')})"
    )
    arguments = ", ".join(f"{names[key]}: {types[key]}" for key in shapes)
    results = f"{result}, {types['keys']}, {types['values']}"
    body = "\n".join(f"  {line}" for line in build.lines)
    return (
        f"func.func private @{name}({arguments}) -> ({results}) {{\n"
        f"{body}\n  return %out, %new_keys, %new_values : {results}\n}}\n"
    )


def _within(kernel: Kernel, index: str, first: int, number: int) -> str:
    """Whether an index is one of `number` from `first` on.  -> i1"""
    from_first = kernel.value(f"arith.subi {index}, {kernel.constant(first)} : index")
    return kernel.value(f"arith.cmpi ult, {from_first}, {kernel.constant(number)} : index")
