"""Text of one kernel: straight-line `vector` code and `scf.for` loops inside an IREE executable."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

LANES = 16  # outputs of one vector; LLVM splits it where registers are narrower
FLOATS = f"vector<{LANES}xf32>"
WORDS = f"vector<{LANES}xi32>"
# Bytes between a load and the prefetch beside it.  Hardware prefetchers stop at the end of a page,
# every 4 KiB; without ours a product took 1.25 times as long (2 to 8 KiB did as well).
AHEAD = 4096


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
        self._constants: dict[str, str] = {}
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
        written = f"dense<{value}>" if kind.startswith("vector") else str(value)
        text = f"arith.constant {written} : {kind}"
        return self._constants.setdefault(text, f"%k{len(self._constants)}")

    def binding(self, shape: Sequence[int], element: str) -> "Buffer":
        """The next argument, as a buffer."""
        argument = f"%arg{len(self.bindings)}"
        self.bindings.append(argument)
        kind = f"memref<{'x'.join([*map(str, shape), element])}>"
        zero = self.constant(0)
        name = self.value(f"stream.binding.subspan {argument}[{zero}] : !stream.binding -> {kind}")
        return Buffer(self, name, kind, prod(shape[2:]) * int(element.lstrip("bfi")) // 8)

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

    def bitcast(self, vector: str, source: str, target: str) -> str:
        """The same bits as another vector type."""
        if source == target:
            return vector
        return self.value(f"vector.bitcast {vector} : {source} to {target}")

    @contextmanager
    def loop(
        self, stop: int, step: int = 1, carried: Sequence[tuple[str, str]] = ()
    ) -> Iterator[Loop]:
        """`for index in range(0, stop, step)`; carried: (start, type) pairs, one result each.

        The body sets `yielded`.
        """
        loop = Loop(self.fresh(), [self.fresh() for _ in carried])
        types = ", ".join(kind for _, kind in carried)
        head = f"scf.for {loop.index} = {self.constant(0)} to {self.constant(stop)}"
        head += f" step {self.constant(step)}"
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

    def text(self) -> str:
        """The kernel as a `stream.executable` with a grid of two axes."""
        arguments = ", ".join(f"{name}: !stream.binding" for name in self.bindings)
        constants = [f"      {name} = {text}" for text, name in self._constants.items()]
        body = "\n".join([*constants, *self.lines])
        return (
            f"stream.executable private @{self.name} {{\n"
            f"  stream.executable.export public @{self.name} workgroups(%x: index, %y: index)"
            f" -> (index, index, index) {{\n"
            f"    %one = arith.constant 1 : index\n"
            f"    stream.return %x, %y, %one : index, index, index\n  }}\n"
            f"  builtin.module {{\n    func.func @{self.name}({arguments}) {{\n{body}\n"
            f"      return\n    }}\n  }}\n}}\n"
        )


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
        ahead = max(1, AHEAD // self.row_bytes)
        place = ", ".join([at[0], self.kernel.add(at[1], ahead), *at[2:]])
        self.kernel.line(
            f"memref.prefetch {self.name}[{place}], read, locality<3>, data : {self.kind}"
        )
        return self.load(at, vector)

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
