"""Entries of compiled sources, and executables that hold them, in text for IREE."""

from dataclasses import dataclass

THREADS = 256  # of a block
BINDING = "#hal.pipeline.binding<storage_buffer"


@dataclass(frozen=True)
class Entry:
    """A kernel as a call passes it: tensors that it reads, those it writes, and numbers, in order.

    numbers: how many, of 32 bits each
    """

    name: str
    reads: int
    writes: int
    numbers: int

    @property
    def bindings(self) -> int:
        """Tensors."""
        return self.reads + self.writes


@dataclass(frozen=True)
class Compiled:
    """Where a target has the sources' code.

    target: the attribute that modules for it name   entries: by file
    """

    target: str
    entries: dict[str, tuple[Entry, ...]]

    def executable_of(self, entry: str) -> tuple[str, str]:
        """The executable that has an entry, and its file."""
        (path,) = (p for p, found in self.entries.items() if entry in {of.name for of in found})
        return path.partition(".")[0].replace("-", "_"), path

    def executable(self, name: str, path: str) -> str:
        """A file and all of its entries, so that a module holds it once, whatever it calls."""
        objects = f'{self.target} = [#hal.executable.object<{{path = "{path}"}}>]'
        exports = "".join(_export(at, entry) for at, entry in enumerate(self.entries[path]))
        return (
            f'"hal.executable.source"() <{{sym_name = "{name}", sym_visibility = "private", '
            f"objects = #hal.executable.objects<{{{objects}}}>}}> ({{\n"
            f'{exports}  "hal.executable.source_end"() : () -> ()\n'
            f"}}) : () -> ()\n"
        )


def _export(number: int, entry: Entry) -> str:
    bindings = ", ".join([f"{BINDING}, ReadOnly>"] * entry.reads + [f"{BINDING}>"] * entry.writes)
    layout = f"#hal.pipeline.layout<constants = {entry.numbers}, bindings = [{bindings}]>"
    return (
        f'  "hal.executable.export"() <{{sym_name = "{entry.name}", sym_visibility = "public", '
        f"ordinal = {number} : index, layout = {layout}, "
        f"workgroup_size = [{THREADS} : index, 1 : index, 1 : index]}}> ({{\n"
        f"  ^bb0(%device: !hal.device, %x: index, %y: index):\n"
        f"    %one = arith.constant 1 : index\n"
        f"    hal.return %x, %y, %one : index, index, index\n"
        f"  }}, {{}}) : () -> ()\n"
    )
