"""One compressed linear as a function that launches `product.cuh`, in text for IREE."""

from dataclasses import dataclass

from trinity.lowering.kernels.calls import KernelCode, dispatch
from trinity.lowering.kernels.lanes.launch import (
    BINDINGS,
    CONSTANTS,
    THREADS,
    Launch,
    launches,
)
from trinity.lowering.kernels.padded_panels import BLOCK
from trinity.lowering.kernels.strip_calls import activations, strip_function
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.mlir.builder import Builder, tensor_type

BINDING = "#hal.pipeline.binding<storage_buffer"


@dataclass(frozen=True)
class Compiled:
    """Where a target has the source's code.

    target: the attribute that modules for it name   entries: by file
    """

    target: str
    entries: dict[str, tuple[str, ...]]

    def executable_of(self, entry: str) -> tuple[str, str]:
        """The executable that has an entry, and its file."""
        (path,) = (path for path, entries in self.entries.items() if entry in entries)
        return path.partition(".")[0].replace("-", "_"), path


def lane_kernels(name: str, strips: Strips, rows: int, code: Compiled) -> KernelCode:
    """The private function `x: [rows, in], storage... -> y: [rows, out]`, all in float32."""
    build, shapes = Builder(), strips.shapes()
    made: dict[Launch, str] = {}
    executables, low = {}, ""
    for launch in launches(strips, rows):
        width = tensor_type((rows, launch.strips.blocks * BLOCK), "f32")
        x = low if launch.prefix == "B_" else activations(build, launch.strips, rows, launch.prefix)
        operands = [(x, width), (f"%arg_{launch.tensor}", tensor_type(*shapes[launch.tensor]))]
        after = launch.after
        operands.append((made[after], result_type(after)) if after else (x, width))
        holder, path = code.executable_of(launch.entry)
        executables[holder] = executable(holder, path, code)
        entry = f"@{holder}::@{launch.entry}"
        made[launch] = low = dispatch(
            build, entry, launch.grid, operands, result_type(launch), launch.numbers
        )
    parts = [(value, result_type(launch)) for launch, value in made.items() if not launch.prefix]
    function = strip_function(build, name, strips, rows, parts)
    return KernelCode(name, function, tuple(executables.items()))


def result_type(launch: Launch) -> str:
    """Of what a kernel writes."""
    return tensor_type((launch.tokens, launch.outputs), "f32")


def executable(name: str, path: str, code: Compiled) -> str:
    """A file and all of its entries, so that a module holds it once, whatever it calls."""
    bindings = ", ".join([f"{BINDING}, ReadOnly>"] * (BINDINGS - 1) + [f"{BINDING}>"])
    layout = f"#hal.pipeline.layout<constants = {CONSTANTS}, bindings = [{bindings}]>"
    objects = f'{code.target} = [#hal.executable.object<{{path = "{path}"}}>]'
    size = f"[{THREADS} : index, 1 : index, 1 : index]"
    exports = "".join(
        f'  "hal.executable.export"() <{{sym_name = "{entry}", sym_visibility = "public", '
        f"ordinal = {number} : index, layout = {layout}, workgroup_size = {size}}}> ({{\n"
        f"  ^bb0(%device: !hal.device, %x: index, %y: index):\n"
        f"    %one = arith.constant 1 : index\n"
        f"    hal.return %x, %y, %one : index, index, index\n"
        f"  }}, {{}}) : () -> ()\n"
        for number, entry in enumerate(code.entries[path])
    )
    return (
        f'"hal.executable.source"() <{{sym_name = "{name}", sym_visibility = "private", '
        f"objects = #hal.executable.objects<{{{objects}}}>}}> ({{\n"
        f'{exports}  "hal.executable.source_end"() : () -> ()\n'
        f"}}) : () -> ()\n"
    )
