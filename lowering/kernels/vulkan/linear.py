"""One compressed linear as a function that dispatches our Vulkan kernels, in text for IREE."""

from trinity.lowering.kernels.calls import KernelCode, dispatch
from trinity.lowering.kernels.padded_panels import BLOCK
from trinity.lowering.kernels.strip_calls import activations, strip_function
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan import dots, tiles
from trinity.lowering.kernels.vulkan.device import VULKAN_CODE
from trinity.lowering.kernels.vulkan.launch import ENTRY, Launch, Term, launches
from trinity.lowering.mlir.builder import Builder, tensor_type

BINDING = "#hal.pipeline.binding<storage_buffer"
BINDINGS = 5  # an input and a stored tensor of two terms, and the result
VARIANT = "spirv"
NARROW = 8  # lanes of a subgroup; GPUs have more
QUERY = "hal.device.query<%device : !hal.device> key("
IS_NARROW = (
    f'      %ok0, %subgroup = {QUERY}"vulkan.device" :: "subgroup_size") : i1, i32 = 32 : i32\n'
    f"      %widest = arith.constant {NARROW} : i32\n"
    f"      %narrow = arith.cmpi ule, %subgroup, %widest : i32\n"
)


def strip_kernels(name: str, strips: Strips, rows: int) -> KernelCode:
    """The private function `x: [rows, in], storage... -> y: [rows, out]`, all in float32."""
    build, shapes = Builder(), strips.shapes()
    low, parts = launches(strips, rows)
    made: dict[Launch, str] = {}
    for launch in (*low, *parts):
        operands = []
        for term, tensor in launch.operands:
            if term.source == "low":
                kind = tensor_type((rows, term.strips.blocks * BLOCK), "f32")
                operands += [(made[low[0]], kind)]
            else:
                operands += [given(build, term, rows)]
            operands += [(f"%arg_{tensor}", tensor_type(*shapes[tensor]))]
        entry = f"@{name_of(launch)}::@{VARIANT}::@{ENTRY}"
        work, result = (len(launch.panels), launch.tokens), result_type(launch)
        made[launch] = dispatch(build, entry, work, operands, result, launch.numbers)
    found = [(made[launch], result_type(launch)) for launch in parts]
    function = strip_function(build, name, strips, rows, found)
    executables = {name_of(launch): executable(launch) for launch in made}
    return KernelCode(name, function, tuple(executables.items()))


def given(build: Builder, term: Term, rows: int) -> tuple[str, str]:
    """The linear's input as a term's kernel reads it, and its type."""
    if dots.dotted(term.strips):
        return dots.byte_inputs(build, term.strips, rows)
    value = activations(build, term.strips, rows, term.prefix)
    return value, tensor_type((rows, term.strips.blocks * BLOCK), "f32")


def result_type(launch: Launch) -> str:
    """Of what a kernel writes."""
    return tensor_type((launch.tokens, launch.outputs), "f32")


def shader_of(launch: Launch) -> str:
    """The file of SPIR-V, without its ending."""
    if dots.dotted(launch.first.strips):
        return "dots"
    return "tile" if tiles.tile_of(launch) else "product"


def name_of(launch: Launch) -> str:
    """Of the executable; the same for the same code and constants."""
    size = tiles.tile_of(launch)
    numbers = (*((size,) if size else ()), *launch.constants)
    return "_".join([shader_of(launch), *map(str, numbers)])


def executable(launch: Launch) -> str:
    """A shader with its specialization constants; no other form of executable keeps them.

    The first ones depend on the device.  One whose subgroups are narrow is a processor: workgroups
    of one row, and never more lanes than a vector has.  It emulates shared memory and what waits
    for it, so many tokens are no tiles there.
    """
    shader, size = shader_of(launch), tiles.tile_of(launch)
    bindings = ", ".join([f"{BINDING}, ReadOnly>"] * (BINDINGS - 1) + [f"{BINDING}>"])
    wide = tile_choice(size) if size else product_choice(launch)
    names = ["%lanes", "%slices", "%tokens", *(f"%c{i}" for i in range(len(launch.formats)))]
    values = [f"      %c{i} = arith.constant {of} : i32\n" for i, of in enumerate(launch.formats)]
    types = ", ".join(["i32"] * len(names))
    keys = ", ".join(f'"{name.strip("%")}"' for name in names)
    return (
        f"hal.executable private @{name_of(launch)} {{\n"
        f"  hal.executable.variant public @{VARIANT} target({VULKAN_CODE}) "
        f'objects([#hal.executable.object<{{path = "{shader}.spv"}}>]) {{\n'
        f"    hal.executable.constant.block(%device: !hal.device) -> ({types}) as ({keys}) {{\n"
        f"{IS_NARROW}{wide}"
        f"      %one = arith.constant 1 : i32\n"
        f"      %few = arith.constant {launch.tile} : i32\n"
        f"      %lanes = arith.select %narrow, %widest, %lanes_wide : i32\n"
        f"      %slices = arith.select %narrow, %one, %slices_wide : i32\n"
        f"      %tokens = arith.select %narrow, %few, %tokens_wide : i32\n"
        f"{''.join(values)}      hal.return {', '.join(names)} : {types}\n    }}\n"
        f"    hal.executable.export public @{ENTRY} ordinal(0) layout(#hal.pipeline.layout<"
        f"constants = {len(launch.numbers)}, bindings = [{bindings}]>) "
        f"count(%device: !hal.device, %panels: index, %rows: index) -> (index, index, index) {{\n"
        f"{IS_NARROW}"
        f"{counted('x', 'panels', 1, tiles.PANELS if size else 1)}"
        f"{counted('y', 'rows', launch.tile, size or launch.tile)}"
        f"      %one = arith.constant 1 : index\n"
        f"      hal.return %x, %y, %one : index, index, index\n    }}\n  }}\n}}\n"
    )


def product_choice(launch: Launch) -> str:
    """Lanes, rows and tokens of a workgroup on a GPU: as many rows as there is room for."""
    return (
        f"      %ok1, %threads = {QUERY}"
        f'"vulkan.device" :: "max_compute_workgroup_invocations") : i1, i32 = 128 : i32\n'
        f"      %lanes_wide = arith.constant {launch.lanes} : i32\n"
        f"      %most = arith.constant {launch.most_slices} : i32\n"
        f"      %fit = arith.divui %threads, %lanes_wide : i32\n"
        f"      %slices_wide = arith.minui %fit, %most : i32\n"
        f"      %tokens_wide = arith.constant {launch.tile} : i32\n"
    )


def tile_choice(size: int) -> str:
    """The same of a tile of so many tokens."""
    return (
        f"      %lanes_wide = arith.constant {tiles.LANES} : i32\n"
        f"      %slices_wide = arith.constant {tiles.ROWS} : i32\n"
        f"      %tokens_wide = arith.constant {size} : i32\n"
    )


def counted(result: str, given: str, narrow: int, wide: int) -> str:
    """Workgroups along an axis, of which each takes so many on the two kinds of devices."""
    found = "".join(
        f"      %{result}_{kind} = affine.apply affine_map<()[s0] -> (s0 ceildiv {each})>()"
        f"[%{given}]\n"
        for kind, each in (("narrow", narrow), ("wide", wide))
    )
    chosen = f"%narrow, %{result}_narrow, %{result}_wide : index"
    return f"{found}      %{result} = arith.select {chosen}\n"
