"""AMX's instructions, the processor's and those written out, against loops over their lanes."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.lowering.kernels.portable import for_any_processor, portable
from trinity.lowering.kernels.cpu.amx_registers import MatrixUnit
from trinity.lowering.kernels.cpu.flavour import missing_here
from trinity.lowering.kernels.cpu.kernel_text import Kernel
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets

CPU = targets.get("llvm-cpu")
BYTES = ("tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud")
SIZES = [(16, 16, 16), (5, 7, 9)]  # of a product, in words: rows, inputs, columns
STRIDE = 20  # words from row to row, in memory
# The kernel's memory holds this wherever an instruction may not write.
UNTOUCHED = 77
Words = NDArray[np.int32]


@pytest.fixture(scope="module", params=[True, False], ids=["written out", "of the processor"])
def written_out(request: pytest.FixtureRequest) -> bool:
    """Whose instructions are tested."""
    if not request.param and missing_here("amx"):
        pytest.skip("this processor has no AMX, or Linux does not grant it to this process")
    return bool(request.param)


@pytest.fixture(scope="module")
def module(written_out: bool) -> Loaded:
    """A function for every instruction and size: of three tiles' memory, the memory afterwards."""
    functions = [function(name, size) for name in (*BYTES, "tdpbf16ps") for size in SIZES]
    text = "module {\n" + "".join(functions) + "}\n"
    target = for_any_processor(CPU) if written_out else CPU
    return Loaded(compile_text(portable(text) if written_out else text, target), target)


def function(name: str, size: tuple[int, int, int]) -> str:
    """One product added to the tile given and one to zeros, and a register that was cleared."""
    rows, inputs, columns = size
    kernel = Kernel(f"{name}_{rows}_kernel")
    given = [kernel.binding((16, STRIDE), "i32") for _ in range(3)]
    out = kernel.output((3, 16, STRIDE), "i32")
    unit, stride = MatrixUnit(kernel), kernel.constant(4 * STRIDE, "i64")
    zero, kind = kernel.constant(0), f"vector<{STRIDE}xi32>"
    with kernel.loop(3) as which, kernel.loop(16) as row:
        value = kernel.constant(UNTOUCHED, kind)
        out.store(value, [which.index, row.index, zero], kind)
    unit.configure([(rows, 4 * columns), (rows, 4 * inputs), (inputs, 4 * columns)])
    for register, buffer in enumerate(given):
        unit.load(register, buffer, zero, stride)
    unit.multiply(name, 0, 1, 2)
    unit.store(0, out, zero, stride)
    unit.zero(0)
    unit.multiply(name, 0, 1, 2)
    unit.store(0, out, kernel.constant(4 * 16 * STRIDE), stride)
    unit.zero(1)
    unit.store(1, out, kernel.constant(2 * 4 * 16 * STRIDE), stride)
    unit.release()
    # The host hands over floats only: the kernel takes their bits.
    tile, tiles = f"tensor<16x{STRIDE}xf32>", f"tensor<3x16x{STRIDE}xf32>"
    arguments = ", ".join(f"%a{i}: {tile}" for i in range(3))
    return (
        f"{kernel.text()}func.func @{name}_{rows}({arguments}) -> {tiles} {{\n"
        f"  %one = arith.constant 1 : index\n"
        f"  %y = flow.dispatch @{kernel.name}::@{kernel.name}[%one, %one](%a0, %a1, %a2)"
        f" : ({tile}, {tile}, {tile}) -> {tiles}\n"
        f"  return %y : {tiles}\n}}\n"
    )


def run(module: Loaded, name: str, size: tuple[int, int, int], given: list[Words]) -> list[Words]:
    """What the function makes of words at the start of each row.  given: `[16, 16]` each"""
    memory = []
    for words in given:
        tile = np.full((16, STRIDE), UNTOUCHED, np.int32)
        tile[:, :16] = words
        memory.append(module.put(torch.from_numpy(tile).view(torch.float32)))
    found = module.fetch(module.call(f"{name}_{size[0]}", memory)).view(torch.int32).numpy()
    assert (found[:, :, 16:] == UNTOUCHED).all()
    return list(found[:, :, :16].copy())


def expected(sums: Words, rows: int, columns: int) -> Words:
    """A tile's words in memory that held something else.  sums: `[rows, columns]`"""
    memory = np.full((16, 16), UNTOUCHED, np.int32)
    memory[:rows, :columns] = sums
    return memory


def sums_of_bytes(name: str, size: tuple[int, int, int], given: list[Words]) -> Words:
    """The definition, lane by lane, in Python's integers."""
    rows, inputs, columns = size
    total, left, right = given
    kinds = [np.int8 if sign == "s" else np.uint8 for sign in name[4:6]]
    a, b = left.view(kinds[0]), right.view(kinds[1])
    sums = total[:rows, :columns].copy()
    for m in range(rows):
        for n in range(columns):
            word = int(total[m, n])
            for k in range(inputs):
                word += sum(int(a[m, 4 * k + i]) * int(b[k, 4 * n + i]) for i in range(4))
            sums[m, n] = (word + 2**31) % 2**32 - 2**31
    return sums


def flushed(value: np.float32) -> np.float32:
    """Zero where only a number below the least normal one would do."""
    least = np.finfo(np.float32).tiny
    return np.copysign(np.float32(0), value) if abs(value) < least else value


def floats_of(words: Words) -> NDArray[np.float32]:
    """Pairs of bfloat16, the lower half first.  words: `[16, 16]`  ->  `[16, 16, 2]`"""
    halves = words.view(np.uint16).astype(np.uint32) << 16
    return halves.view(np.float32).reshape(16, 16, 2)


def sums_of_floats(size: tuple[int, int, int], given: list[Words]) -> NDArray[np.float32]:
    """The definition, lane by lane: a product of two bfloat16 is exact in float32."""
    rows, inputs, columns = size
    total, left, right = given[0].view(np.float32), floats_of(given[1]), floats_of(given[2])
    sums = total[:rows, :columns].copy()
    for m in range(rows):
        for n in range(columns):
            apart = [np.float32(0), np.float32(0)]
            for k in range(inputs):
                for i in range(2):
                    product = flushed(left[m, k, i]) * flushed(right[k, n, i])
                    apart[i] = flushed(apart[i] + product)
            sums[m, n] = flushed(flushed(total[m, n]) + flushed(apart[0] + apart[1]))
    return sums


def random_words() -> Words:
    """Every bit at random.  -> `[16, 16]`"""
    words: Tensor = torch.randint(-(2**31), 2**31, (16, 16), dtype=torch.int64)
    return words.numpy().astype(np.int32)


def random_floats(scale: float) -> Words:
    """Pairs of bfloat16 over some magnitudes, some of them below the least normal number."""
    values = torch.randn(16, 32) * torch.logspace(-3, 3, 32) * scale
    values[3, ::5] = 1e-39
    return values.bfloat16().view(torch.int16).numpy().view(np.int32)


@pytest.mark.parametrize("size", SIZES)
def test_products_of_bytes_are_those_of_the_manual_in_every_lane(
    module: Loaded, size: tuple[int, int, int]
) -> None:
    rows, inputs, columns = size
    for name in BYTES:
        given = [random_words() for _ in range(3)]
        found = run(module, name, size, given)
        from_zero = [np.zeros_like(given[0]), *given[1:]]
        for which, tiles in enumerate((given, from_zero)):
            sums = sums_of_bytes(name, size, tiles)
            np.testing.assert_array_equal(found[which], expected(sums, rows, columns), name)
        none = np.zeros((rows, inputs), np.int32)
        np.testing.assert_array_equal(found[2], expected(none, rows, inputs))


# Written out, sums are those of the manual to the last bit.  Should a processor add in another
# order: none is further off than the rounding of each of the 33 numbers by the sum of magnitudes.
@pytest.mark.parametrize("scale", [1.0, 1e-19])
@pytest.mark.parametrize("size", SIZES)
def test_products_of_bfloat16_are_those_of_the_manual_in_every_lane(
    module: Loaded, written_out: bool, size: tuple[int, int, int], scale: float
) -> None:
    rows, _, columns = size
    start = torch.randn(16, 16) * scale * scale
    given = [start.numpy().view(np.int32), random_floats(scale), random_floats(scale)]
    found = run(module, "tdpbf16ps", size, given)
    for which, tiles in enumerate((given, [np.zeros_like(given[0]), *given[1:]])):
        sums = sums_of_floats(size, tiles)
        exact = expected(sums.view(np.int32), rows, columns)
        if written_out:
            np.testing.assert_array_equal(found[which], exact)
        else:
            error = np.abs(found[which].view(np.float32) - exact.view(np.float32))
            assert (error <= 33 * (2.0**-24 * magnitudes(tiles) + 2.0**-126)).all()


def magnitudes(given: list[Words]) -> NDArray[np.float64]:
    """Sums of the absolute values of all that is added, of whole tiles.  -> `[16, 16]`"""
    start = np.abs(given[0].view(np.float32)).astype(np.float64)
    left, right = (np.abs(floats_of(words)).astype(np.float64) for words in given[1:])
    products: NDArray[np.float64] = np.einsum("mki,kni->mn", left, right)
    return start + products
