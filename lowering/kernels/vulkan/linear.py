"""One compressed linear as a function that dispatches our Vulkan kernels, in text for IREE."""

from trinity.lowering.kernels.calls import KernelCode, dispatch
from trinity.lowering.kernels.padded_panels import BLOCK
from trinity.lowering.kernels.strip_calls import activations, strip_function
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan.device import VULKAN_CODE
from trinity.lowering.kernels.vulkan.launch import ENTRY, Launch, launches
from trinity.lowering.mlir.builder import Builder, tensor_type

BINDING = "#hal.pipeline.binding<storage_buffer"
BINDINGS = 5  # an input and a stored tensor of two terms, and the result
VARIANT = "spirv"
NARROW = 8  # lanes of a subgroup; GPUs have more


def strip_kernels(name: str, strips: Strips, rows: int) -> KernelCode:
    """The private function `x: [rows, in], storage... -> y: [rows, out]`, all in float32."""
    build, shapes = Builder(), strips.shapes()
    low, parts = launches(strips, rows)
    made: dict[Launch, str] = {}
    for launch in (*low, *parts):
        operands = []
        for term, tensor in launch.operands:
            value = (
                made[low[0]]
                if term.source == "low"
                else activations(build, term.strips, rows, term.prefix)
            )
            operands += [(value, tensor_type((rows, term.strips.blocks * BLOCK), "f32"))]
            operands += [(f"%arg_{tensor}", tensor_type(*shapes[tensor]))]
        entry = f"@{launch.name}::@{VARIANT}::@{ENTRY}"
        made[launch] = dispatch(
            build, entry, launch.grid, operands, result_type(launch), launch.numbers
        )
    found = [(made[launch], result_type(launch)) for launch in parts]
    function = strip_function(build, name, strips, rows, found)
    executables = {launch.name: executable(launch) for launch in made}
    return KernelCode(name, function, tuple(executables.items()))


def result_type(launch: Launch) -> str:
    """Of what a kernel writes."""
    return tensor_type((launch.tokens, launch.outputs), "f32")


def executable(launch: Launch) -> str:
    """`product.spv` with its specialization constants, on a grid of two axes.

    The first two depend on the device.  One whose subgroups are narrow is a processor: workgroups
    of one row, and never more lanes than a vector has.  All others get as many rows as there is
    room for.  No other form of executable keeps constants.
    """
    bindings = ", ".join([f"{BINDING}, ReadOnly>"] * (BINDINGS - 1) + [f"{BINDING}>"])
    values = [f"      %c{i} = arith.constant {of} : i32" for i, of in enumerate(launch.constants)]
    names = ["%lanes", "%slices", *(f"%c{i}" for i in range(len(launch.constants)))]
    types = ", ".join(["i32"] * len(names))
    keys = ", ".join(f'"{name.strip("%")}"' for name in names)
    query = "hal.device.query<%device : !hal.device> key("
    return (
        f"hal.executable private @{launch.name} {{\n"
        f"  hal.executable.variant public @{VARIANT} target({VULKAN_CODE}) "
        f'objects([#hal.executable.object<{{path = "product.spv"}}>]) {{\n'
        f"    hal.executable.constant.block(%device: !hal.device) -> ({types}) as ({keys}) {{\n"
        f'      %ok0, %subgroup = {query}"vulkan.device" :: "subgroup_size") : i1, i32 = 32 : i32\n'
        f"      %ok1, %threads = {query}"
        f'"vulkan.device" :: "max_compute_workgroup_invocations") : i1, i32 = 128 : i32\n'
        f"      %one = arith.constant 1 : i32\n"
        f"      %wide = arith.constant {launch.lanes} : i32\n"
        f"      %most = arith.constant {launch.most_slices} : i32\n"
        f"      %widest = arith.constant {NARROW} : i32\n"
        f"      %fit = arith.divui %threads, %wide : i32\n"
        f"      %rows = arith.minui %fit, %most : i32\n"
        f"      %narrow = arith.cmpi ule, %subgroup, %widest : i32\n"
        f"      %lanes = arith.select %narrow, %widest, %wide : i32\n"
        f"      %slices = arith.select %narrow, %one, %rows : i32\n"
        + "\n".join(values)
        + f"\n      hal.return {', '.join(names)} : {types}\n    }}\n"
        f"    hal.executable.export public @{ENTRY} ordinal(0) layout(#hal.pipeline.layout<"
        f"constants = {len(launch.numbers)}, bindings = [{bindings}]>) "
        f"count(%device: !hal.device, %x: index, %y: index) -> (index, index, index) {{\n"
        f"      %one = arith.constant 1 : index\n"
        f"      hal.return %x, %y, %one : index, index, index\n    }}\n  }}\n}}\n"
    )
