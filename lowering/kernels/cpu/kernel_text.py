"""Text of one kernel: straight-line `vector` code and `scf.for` loops inside an IREE executable."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

LANES = 16  # outputs of one vector; LLVM splits it where registers are narrower
FLOATS = f"vector<{LANES}xf32>"
WORDS = f"vector<{LANES}xi32>"
BYTES = "vector<64xi8>"
# Bytes between a load and the prefetch beside it.  Hardware prefetchers stop at the end of a page,
# every 4 KiB; without ours a product took 1.25 times as long (2 to 8 KiB did as well).  Into the
# second-level cache: the first has room for 16 lines on their way, fewer than memory has latency
# for (int4, 4096 x 4096, one row: 0.91 of the time).
AHEAD = 4096
LOCALITY = 1


@dataclass
class Loop:
    """A `scf.for` while it is written: its index, what it carries, and after it, what came out."""

    index: str
    carried: list[str]
    results: list[str] = field(default_factory=list)
    yielded: list[str] = field(default_factory=list)


class Kernel:
    """Lines of one kernel; constants stand at its top, once each."""

    def __init__(self, name: str) -> None:
        """name: of the executable and its function, unique for what the kernel does."""
        self.name = name
        self.lines: list[str] = []
        self.bindings: list[str] = []
        self.outputs: list[str] = []
        self._constants: dict[str, str] = {}
        self._tables: dict[str, str] = {}
        self._depth, self._count = 3, 0

    def line(self, text: str) -> None:
        """Append a line."""
        self.lines.append("  " * self._depth + text)

    def fresh(self) -> str:
        """A new name."""
        self._count += 1
        return f"%v{self._count}"

    def value(self, expression: str) -> str:
        """Append `%n = expression`."""
        name = self.fresh()
        self.line(f"{name} = {expression}")
        return name

    def constant(self, value: object, kind: str = "index") -> str:
        """A constant of a scalar or vector type; a vector's lanes are all `value`."""
        number = f"{value:.9e}" if isinstance(value, float) else str(value)  # 1e-6 is no MLIR
        written = f"dense<{number}>" if kind.startswith("vector") else number
        text = f"arith.constant {written} : {kind}"
        return self._constants.setdefault(text, f"%k{len(self._constants)}")

    def numbers(self, values: Sequence[int], element: str) -> str:
        """A constant vector."""
        text = f"arith.constant dense<{list(values)}> : vector<{len(values)}x{element}>"
        return self._constants.setdefault(text, f"%k{len(self._constants)}")

    def table(self, name: str, values: Sequence[int], shape: tuple[int, int]) -> "Buffer":
        """Bytes that stand beside the kernel's code, once under a name."""
        rows, columns = shape
        kind = f"memref<{rows}x{columns}xi8>"
        of_rows = [list(values[i : i + columns]) for i in range(0, len(values), columns)]
        self._tables[name] = f'memref.global "private" constant @{name} : {kind} = dense<{of_rows}>'
        return Buffer(self, self.value(f"memref.get_global @{name} : {kind}"), kind, 0)

    def binding(self, shape: Sequence[int], element: str) -> "Buffer":
        """The next operand of the dispatch, as a buffer."""
        return self.region(self.argument(), 0, shape, element)

    def argument(self) -> str:
        """As `binding`, of which regions are taken later."""
        self.bindings.append(f"%arg{len(self.bindings)}")
        return self.bindings[-1]

    def output(self, shape: Sequence[int], element: str) -> "Buffer":
        """The next result of the dispatch that is not an operand written in place."""
        return self.region(self.output_argument(), 0, shape, element)

    def output_argument(self) -> str:
        """As `output`, of which regions are taken later."""
        self.outputs.append(f"%out{len(self.outputs)}")
        return self.outputs[-1]

    def region(self, argument: str, offset: int, shape: Sequence[int], element: str) -> "Buffer":
        """A part of an argument, from a byte on, as a buffer."""
        kind = f"memref<{'x'.join([*map(str, shape), element])}>"
        start = self.constant(offset)
        name = self.value(f"stream.binding.subspan {argument}[{start}] : !stream.binding -> {kind}")
        return Buffer(self, name, kind, prod(shape[2:]) * int(element.lstrip("bfi")) // 8)

    def scratch(self, shape: Sequence[int], element: str) -> "Buffer":
        """Memory of the workgroup's own, from the start of a cache line, not set to anything."""
        kind = f"memref<{'x'.join([*map(str, shape), element])}>"
        name = self.value(
            f'"memref.alloca"() <{{alignment = 64 : i64, operandSegmentSizes = array<i32: 0, 0>}}>'
            f" : () -> {kind}"
        )
        return Buffer(self, name, kind, 0)

    def pointer(self, buffer: "Buffer", offset: str) -> str:
        """The address of a byte of a buffer, an `!llvm.ptr` for intrinsics."""
        start = self.value(
            f"memref.extract_aligned_pointer_as_index {buffer.name} : {buffer.kind} -> index"
        )
        place = self.value(f"arith.index_cast {self.add(start, offset)} : index to i64")
        return self.value(f"llvm.inttoptr {place} : i64 to !llvm.ptr")

    def workgroup(self, axis: int) -> str:
        """This workgroup's number along an axis of the grid."""
        return self.value(f"stream.dispatch.workgroup.id[{axis}] : index")

    def add(self, left: str, right: int | str) -> str:
        """Sum of an index and an index or a number."""
        if right == 0:
            return left
        other = right if isinstance(right, str) else self.constant(right)
        return self.value(f"arith.addi {left}, {other} : index")

    def times(self, left: str, right: int) -> str:
        """Product of an index and a number."""
        return (
            left if right == 1 else self.value(f"arith.muli {left}, {self.constant(right)} : index")
        )

    def splat(self, scalar: str, kind: str) -> str:
        """A scalar in every lane of a vector type."""
        return self.value(f"vector.broadcast {scalar} : {kind.split('x')[1][:-1]} to {kind}")

    def sum_of(self, vector: str, lanes: int = LANES) -> str:
        """The lanes of a vector of floats, added in halves: in order it would take as many steps
        as there are lanes, a power of two.  -> f32
        """
        while lanes > 1:
            half, kind = lanes // 2, f"vector<{lanes}xf32>"
            low, high = (
                self.value(
                    f"vector.shuffle {vector}, {vector} {list(range(first, first + half))} "
                    f": {kind}, {kind}"
                )
                for first in (0, half)
            )
            lanes = half
            vector = self.value(f"arith.addf {low}, {high} : vector<{lanes}xf32>")
        return self.value(f"vector.extract {vector}[0] : f32 from vector<1xf32>")

    def bitcast(self, vector: str, source: str, target: str) -> str:
        """The same bits as another vector type."""
        if source == target:
            return vector
        return self.value(f"vector.bitcast {vector} : {source} to {target}")

    @contextmanager
    def loop(
        self,
        stop: int | str,
        step: int = 1,
        carried: Sequence[tuple[str, str]] = (),
        start: int | str = 0,
    ) -> Iterator[Loop]:
        """`for index in range(start, stop, step)`; carried: (start, type) pairs, one result each.

        The body sets `yielded`.
        """
        loop = Loop(self.fresh(), [self.fresh() for _ in carried])
        types = ", ".join(kind for _, kind in carried)
        first, last = (at if isinstance(at, str) else self.constant(at) for at in (start, stop))
        head = f"scf.for {loop.index} = {first} to {last} step {self.constant(step)}"
        if carried:
            result = self.fresh()
            starts = [start for start, _ in carried]
            pairs = ", ".join(f"{n} = {s}" for n, s in zip(loop.carried, starts, strict=True))
            head = f"{result}:{len(carried)} = {head} iter_args({pairs}) -> ({types})"
            loop.results = [f"{result}#{i}" for i in range(len(carried))]
        self.line(f"{head} {{")
        self._depth += 1
        yield loop
        if carried:
            self.line(f"scf.yield {', '.join(loop.yielded)} : {types}")
        self._depth -= 1
        self.line("}")

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """What is written inside runs only where an i1 holds."""
        self.line(f"scf.if {condition} {{")
        self._depth += 1
        yield
        self._depth -= 1
        self.line("}")

    @contextmanager
    def repeat(self, value: str, condition: str) -> Iterator[str]:
        """`while condition: body`; the condition and the body see a new `value` every time.

        value, condition: expressions, of an i32 and, with `{}` for it as an index, of an i1
        """
        seen, met, inside = self.fresh(), self.fresh(), self.fresh()
        self.line("scf.while : () -> index {")
        self.line(f"  {seen}_word = {value}")
        self.line(f"  {seen} = arith.index_cast {seen}_word : i32 to index")
        self.line(f"  {met} = {condition.format(seen)}")
        self.line(f"  scf.condition({met}) {seen} : index")
        self.line("} do {")
        self.line(f"^bb0({inside}: index):")
        self._depth += 1
        yield inside
        self.line("scf.yield")
        self._depth -= 1
        self.line("}")

    def text(self) -> str:
        """The kernel as a `stream.executable` with a grid of two axes."""
        names = [*self.bindings, *self.outputs]
        arguments = ", ".join(f"{name}: !stream.binding" for name in names)
        constants = [f"      {name} = {text}" for text, name in self._constants.items()]
        body = "\n".join([*constants, *self.lines])
        tables = "".join(f"    {table}\n" for table in self._tables.values())
        return (
            f"stream.executable private @{self.name} {{\n"
            f"  stream.executable.export public @{self.name} workgroups(%x: index, %y: index)"
            f" -> (index, index, index) {{\n"
            f"    %one = arith.constant 1 : index\n"
            f"    stream.return %x, %y, %one : index, index, index\n  }}\n"
            f"  builtin.module {{\n{tables}    func.func @{self.name}({arguments}) {{\n{body}\n"
            f"      return\n    }}\n  }}\n}}\n"
        )


def write_all(steps: Iterator[None]) -> None:
    """Append the code of what is left of some steps."""
    for _ in steps:
        pass


def parts(kernel: Kernel, vector: str, kind: str, count: int) -> tuple[str, ...]:
    """A vector cut into `count` equal ones."""
    if count == 1:
        return (vector,)
    size = int(kind.removeprefix("vector<").partition("x")[0]) // count
    return tuple(
        kernel.value(
            f"vector.shuffle {vector}, {vector} {list(range(first, first + size))} : {kind}, {kind}"
        )
        for first in range(0, count * size, size)
    )


def joined(kernel: Kernel, vectors: Sequence[str], element: str, size: int) -> str:
    """Inverse of `parts`.  size: of each"""
    found = list(vectors)
    while len(found) > 1:
        kind, order = f"vector<{size}x{element}>", list(range(2 * size))
        found = [
            kernel.value(f"vector.shuffle {a}, {b} {order} : {kind}, {kind}")
            for a, b in zip(found[::2], found[1::2], strict=True)
        ]
        size *= 2
    return found[0]


@dataclass(frozen=True)
class Buffer:
    """One argument of a kernel.  row_bytes: from one place of its second axis to the next"""

    kernel: Kernel
    name: str
    kind: str
    row_bytes: int

    def load(self, at: Sequence[str], vector: str) -> str:
        """A vector of consecutive elements."""
        place = ", ".join(at)
        return self.kernel.value(f"vector.load {self.name}[{place}] : {self.kind}, {vector}")

    def stream(self, at: Sequence[str], vector: str) -> str:
        """As `load`, of something read once along the second axis: memory further on is asked for.

        Past the end stands the next panel, or nothing that a prefetch could do harm to.
        """
        self.ask(at)
        return self.load(at, vector)

    def ask(self, at: Sequence[str]) -> None:
        """Ask for memory further on, as `stream` does."""
        ahead = max(1, AHEAD // self.row_bytes)
        place = ", ".join([at[0], self.kernel.add(at[1], ahead), *at[2:]])
        self.kernel.line(
            f"memref.prefetch {self.name}[{place}], read, locality<{LOCALITY}>, data : {self.kind}"
        )

    def store(self, value: str, at: Sequence[str], vector: str) -> None:
        """Write a vector of consecutive elements."""
        place = ", ".join(at)
        self.kernel.line(f"vector.store {value}, {self.name}[{place}] : {self.kind}, {vector}")

    def load_scalar(self, at: Sequence[str]) -> str:
        """One element."""
        return self.kernel.value(f"memref.load {self.name}[{', '.join(at)}] : {self.kind}")

    def store_scalar(self, value: str, at: Sequence[str]) -> None:
        """Write one element."""
        self.kernel.line(f"memref.store {value}, {self.name}[{', '.join(at)}] : {self.kind}")
