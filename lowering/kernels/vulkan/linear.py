"""One compressed linear as a function that dispatches our Vulkan kernels, in text for IREE."""

from trinity.lowering.kernels.calls import KernelCode, dispatch, linear_arguments
from trinity.lowering.kernels.padded_panels import BLOCK, PANEL, padded_input
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan.device import VULKAN_CODE
from trinity.lowering.kernels.vulkan.launch import ENTRY, MOST_SLICES, Launch, Term, launches
from trinity.lowering.mlir.builder import Builder, tensor_type
from trinity.lowering.rows.linalg import rounded_input

BINDING = "#hal.pipeline.binding<storage_buffer"
BINDINGS = 5  # an input and a stored tensor of two terms, and the result
VARIANT = "spirv"
NARROW = 8  # lanes of a subgroup; GPUs have more


def strip_kernels(name: str, strips: Strips, rows: int) -> KernelCode:
    """The private function `x: [rows, in], storage... -> y: [rows, out]`, all in float32."""
    (out, d_in), build, shapes = strips.format.shape, Builder(), strips.shapes()
    low, parts, kind = *launches(strips, rows), tensor_type((rows, out), "f32")
    made: dict[Launch, str] = {}
    for launch in (*low, *parts):
        operands = []
        for term, tensor in launch.operands:
            value = made[low[0]] if term.source == "low" else activations(build, term, rows)
            operands += [(value, tensor_type((rows, term.strips.blocks * BLOCK), "f32"))]
            operands += [(f"%arg_{tensor}", tensor_type(*shapes[tensor]))]
        entry = f"@{launch.name}::@{VARIANT}::@{ENTRY}"
        made[launch] = dispatch(
            build, entry, launch.grid, operands, result_type(launch), launch.numbers
        )
    result = made[parts[0]]
    if len(parts) > 1:
        values, types = ", ".join(made[of] for of in parts), ", ".join(map(result_type, parts))
        result = build.value(f"tensor.concat dim(1) {values} : ({types}) -> {kind}")
    function = build.function(name, linear_arguments(d_in, rows, shapes), result, kind)
    executables = {launch.name: executable(launch) for launch in made}
    return KernelCode(name, function, tuple(executables.items()))


def result_type(launch: Launch) -> str:
    """Of what a kernel writes."""
    return tensor_type((launch.tokens, launch.outputs), "f32")


def activations(build: Builder, term: Term, rows: int) -> str:
    """The input of a weight, every scale group padded to whole blocks.

    The same text twice is computed once.
    """
    strips, value, (_, d_in) = term.strips, "%arg_x", term.strips.format.shape
    if inputs := strips.format.inputs:
        value = rounded_input(build, rows, value, d_in, inputs)
    return padded_input(build, strips, rows, value, term.prefix)


def executable(launch: Launch) -> str:
    """`product.spv` with its specialization constants, on a grid of two axes.

    The first two depend on the device.  One whose subgroups are narrow is a processor: workgroups
    of one row, and at one token no more lanes than a vector has.  All others get a panel's lanes,
    and as many rows as there is room for.  No other form of executable keeps constants.
    """
    bindings = ", ".join([f"{BINDING}, ReadOnly>"] * (BINDINGS - 1) + [f"{BINDING}>"])
    values = [f"      %c{i} = arith.constant {of} : i32" for i, of in enumerate(launch.constants)]
    names = ["%lanes", "%slices", *(f"%c{i}" for i in range(len(launch.constants)))]
    types = ", ".join(["i32"] * len(names))
    keys = ", ".join(f'"{name.strip("%")}"' for name in names)
    query = "hal.device.query<%device : !hal.device> key("
    few_lanes = NARROW if launch.tile == 1 else PANEL
    return (
        f"hal.executable private @{launch.name} {{\n"
        f"  hal.executable.variant public @{VARIANT} target({VULKAN_CODE}) "
        f'objects([#hal.executable.object<{{path = "product.spv"}}>]) {{\n'
        f"    hal.executable.constant.block(%device: !hal.device) -> ({types}) as ({keys}) {{\n"
        f'      %ok0, %subgroup = {query}"vulkan.device" :: "subgroup_size") : i1, i32 = 32 : i32\n'
        f"      %ok1, %threads = {query}"
        f'"vulkan.device" :: "max_compute_workgroup_invocations") : i1, i32 = 128 : i32\n'
        f"      %one = arith.constant 1 : i32\n"
        f"      %panel = arith.constant {PANEL} : i32\n"
        f"      %most = arith.constant {MOST_SLICES} : i32\n"
        f"      %widest = arith.constant {NARROW} : i32\n"
        f"      %few = arith.constant {few_lanes} : i32\n"
        f"      %fit = arith.divui %threads, %panel : i32\n"
        f"      %rows = arith.minui %fit, %most : i32\n"
        f"      %narrow = arith.cmpi ule, %subgroup, %widest : i32\n"
        f"      %lanes = arith.select %narrow, %few, %panel : i32\n"
        f"      %slices = arith.select %narrow, %one, %rows : i32\n"
        + "\n".join(values)
        + f"\n      hal.return {', '.join(names)} : {types}\n    }}\n"
        f"    hal.executable.export public @{ENTRY} ordinal(0) layout(#hal.pipeline.layout<"
        f"constants = {len(launch.numbers)}, bindings = [{bindings}]>) "
        f"count(%device: !hal.device, %x: index, %y: index) -> (index, index, index) {{\n"
        f"      %one = arith.constant 1 : index\n"
        f"      hal.return %x, %y, %one : index, index, index\n    }}\n  }}\n}}\n"
    )
