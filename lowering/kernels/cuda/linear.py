"""One compressed linear as a function that launches our CUDA kernels, in text for IREE."""

from trinity.lowering.kernels.calls import KernelCode, dispatch, entry_of, linear_arguments
from trinity.lowering.kernels.cuda.code import CODE
from trinity.lowering.kernels.cuda.device import CUDA_CODE
from trinity.lowering.kernels.cuda.launch import (
    BINDINGS,
    CONSTANTS,
    DIGITS,
    Launch,
    Term,
    launches,
)
from trinity.lowering.kernels.cuda.tiles import Tiles
from trinity.lowering.kernels.decoder_calls import Typed
from trinity.lowering.kernels.lanes.dispatches import Dispatches
from trinity.lowering.kernels.padded_panels import BLOCK, padded_input
from trinity.lowering.mlir.builder import MLIR_TYPES, Builder, Operand, tensor_type

SPLIT = (4, 4, 2)  # a block of 32 inputs by register, thread and half of a B operand


def tile_kernels(name: str, tiles: Tiles, rows: int, dtype: str) -> KernelCode:
    """The private function `x: [rows, in], storage... -> y: [rows, out]`, all in float32.

    dtype: of the model, which says what numbers x holds
    """
    (out, d_in), made = tiles.format.shape, Dispatches(CODE)
    arguments = linear_arguments(d_in, rows, tiles.shapes())
    result = tile_product(made, tiles, rows, dtype)
    function = made.build.function(name, arguments, result, tensor_type((rows, out), "f32"))
    return KernelCode(name, function, made.executables)


def tile_product(
    made: Dispatches, tiles: Tiles, rows: int, dtype: str, x: Typed | None = None, place: str = ""
) -> str:
    """A linear.

    x: float32 [rows, in], or in digits, of `digits_type`; None is the function's argument
    place: before the names of its tensors, among the function's arguments
    -> [rows, out]
    """
    floats = tensor_type((rows, tiles.format.shape[1]), "f32")
    value, kind = x or ("%arg_x", floats)
    result, low = "", ("", "")
    for launch in launches(tiles, rows, dtype):
        operands = []
        for term in launch.terms:
            given = low if term.source == "low" else (value, kind)
            if given[1] == floats:
                given = activations(made.build, term, rows, value, place)
            operands.append(given)
            shapes = {f"{term.prefix}{key}": of for key, of in term.tiles.shapes().items()}
            operands += [(f"%arg_{place}{key}", tensor_type(*shapes[key])) for key in term.stored]
        of, entry = _tensor(launch), entry_of(launch.entry)
        result = dispatch(made.build, entry, launch.grid, operands, of, launch.constants)
        low = result, of
        made.texts[launch.entry] = executable(launch)
    return result


def digits_type(width: int) -> str:
    """The type of a token's activations in digits, as `activations` writes them.  width: whole
    blocks
    """
    return tensor_type((width // BLOCK, DIGITS, 1, *SPLIT), "i16")


def _tensor(launch: Launch) -> str:
    shape, dtype = launch.result
    return tensor_type(shape, "i16" if launch.low else MLIR_TYPES[dtype])


def activations(
    build: Builder, term: Term, rows: int, x: str = "%arg_x", place: str = ""
) -> tuple[str, str]:
    """The input of a term in the order of B operands: (value, type).

    [blocks, digits, rows, 4, 4, 2]: thread `t` of four takes from each block of 32 inputs those at
    `8 r + 2 t + e`, for `r` of four registers and `e` of their halves.  The compiler writes this
    loop, so that it can be part of what makes the input.
    """
    tiles = term.tiles
    value = padded_input(build, tiles, rows, x, place + term.prefix)
    width = tiles.blocks * BLOCK
    value = build.expand(value, (rows, width), [[rows], [tiles.blocks, *SPLIT]], "f32")
    padded = Operand("x", value, tuple("mbrte"), (rows, tiles.blocks, *SPLIT), "f32")
    count, kind = (DIGITS, "i16") if term.digits else (1, "f16")
    loops, shape = "b p m t r e", (tiles.blocks, count, rows, 4, 4, 2)
    body = ["%yield = arith.truncf %in_x : f32 to f16"]  # exact: x came from float16
    if term.digits:
        body = _digit_of("%in_x", loops.split().index("p"))
    empty = build.value(f"tensor.empty() : {tensor_type(shape, kind)}")
    output = Operand("out", empty, tuple(loops.split()), shape, kind)
    return build.generic(loops, [padded], output, "", body), output.type


def _digit_of(value: str, loop: int) -> list[str]:
    """Lines for `%yield`, the bfloat16 digit of a float32 whose number is a loop's.

    A digit is the upper half of the bits of what is left: 8 of 24 significant ones, cut off.  In
    integers, so that no compiler takes a rounding and its inverse for nothing.
    """
    lines = [
        "%upper = arith.constant -65536 : i32",
        "%half = arith.constant 16 : i32",
        f"%number = linalg.index {loop} : index",
        f"%bits0 = arith.bitcast {value} : f32 to i32",
    ]
    left, chosen = value, "%bits0"
    for digit in range(1, DIGITS):
        last = digit - 1
        lines += [
            f"%top{last} = arith.andi %bits{last}, %upper : i32",
            f"%part{last} = arith.bitcast %top{last} : i32 to f32",
            f"%left{digit} = arith.subf {left}, %part{last} : f32",
            f"%bits{digit} = arith.bitcast %left{digit} : f32 to i32",
            f"%digit{digit} = arith.constant {digit} : index",
            f"%here{digit} = arith.cmpi eq, %number, %digit{digit} : index",
            f"%chosen{digit} = arith.select %here{digit}, %bits{digit}, {chosen} : i32",
        ]
        left, chosen = f"%left{digit}", f"%chosen{digit}"
    return [
        *lines,
        f"%moved = arith.shrui {chosen}, %half : i32",
        "%yield = arith.trunci %moved : i32 to i16",
    ]


def executable(launch: Launch) -> str:
    """A kernel's PTX file as an executable with one entry, on a grid of two axes."""
    entry = launch.entry
    binding = "#hal.pipeline.binding<storage_buffer"
    bindings = ", ".join([f"{binding}, ReadOnly>"] * (BINDINGS - 1) + [f"{binding}>"])
    layout = f"#hal.pipeline.layout<constants = {CONSTANTS}, bindings = [{bindings}]>"
    objects = f'#hal.executable.objects<{{{CUDA_CODE} = [#hal.executable.object<{{path = "'
    objects += f'{entry}.ptx"}}>]}}>'
    size = f"[{launch.threads} : index, 1 : index, 1 : index]"
    return (
        f'"hal.executable.source"() <{{sym_name = "{entry}", sym_visibility = "private", '
        f"objects = {objects}}}> ({{\n"
        f'  "hal.executable.export"() <{{sym_name = "{entry}", sym_visibility = "public", '
        f"ordinal = 0 : index, layout = {layout}, workgroup_size = {size}}}> ({{\n"
        f"  ^bb0(%device: !hal.device, %x: index, %y: index):\n"
        f"    %one = arith.constant 1 : index\n"
        f"    hal.return %x, %y, %one : index, index, index\n"
        f"  }}, {{}}) : () -> ()\n"
        f'  "hal.executable.source_end"() : () -> ()\n'
        f"}}) : () -> ()\n"
    )
