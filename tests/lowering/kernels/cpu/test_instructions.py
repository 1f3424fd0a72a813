"""Every flavour's instructions, the processor's and those written out, against loops over lanes."""

from typing import Literal, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.lowering.kernels import arm
from tests.lowering.kernels.portable import for_any_processor, portable
from trinity.lowering.kernels.cpu.dots import Dots
from trinity.lowering.kernels.cpu.flavour import missing_here
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Flavour
from trinity.lowering.kernels.cpu.kernel_text import BYTES, FLOATS, WORDS, Kernel
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets

CPU = targets.get("llvm-cpu")
WITH_DOTS: list[Flavour] = [name for name, made in INSTRUCTIONS.items() if made.dots]
# Codes of 2, 3, 4 and 8 bits, of E2M1, and the last byte that is the same with a sign.
LARGEST = (3, 7, 15, 24, 127, 255)
WORD_TABLE = [(i * 0x2545F491 + 7) % 2**31 for i in range(16)]
TABLE = [(7 * i + 3) % 32 for i in range(16)]


# Where instructions are carried out: written out, by this processor, by one that is emulated.
Where = Literal["written out", "here", "emulated"]
CASES: list[tuple[Flavour, Where]] = [
    (flavour, where)
    for flavour in WITH_DOTS
    if flavour != "amx"
    for where in get_args(Where)
    if where != "emulated" or flavour in arm.CPUS
]


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def case(request: pytest.FixtureRequest) -> tuple[Flavour, Where]:
    flavour, where = request.param
    if where == "here" and (missing := missing_here(flavour)):
        pytest.skip(missing)
    if where == "emulated":
        arm.require()
    return flavour, where


@pytest.fixture(scope="module")
def flavour(case: tuple[Flavour, Where]) -> Flavour:
    return case[0]


@pytest.fixture(scope="module")
def module(case: tuple[Flavour, Where]) -> Loaded | arm.Emulated:
    """Functions of words as floats' bits: products of codes of every size, and conversions."""
    flavour, where = case
    dots = INSTRUCTIONS[flavour].dots
    assert dots
    texts = [products(f"up_to_{largest}", dots, largest) for largest in LARGEST]
    texts += [conversions(flavour), expansion(flavour, BYTES), expansion(flavour, FLOATS)]
    texts += [placement(flavour, count) for count in (1, 2, 3)]
    texts += [shuffle(flavour), look_up(flavour)]
    texts += [permutation(flavour)] if INSTRUCTIONS[flavour].permute else []
    text = "module {\n" + "".join(texts) + "}\n"
    if where == "emulated":
        return arm.loaded(text, flavour)
    target = for_any_processor(CPU) if where == "written out" else CPU
    return Loaded(compile_text(portable(text) if where == "written out" else text, target), target)


def products(name: str, dots: Dots, largest: int) -> str:
    """Sums, word vectors of codes, a word of digits for each: the sums with all products."""
    kernel, count = Kernel(f"{name}_kernel"), words_of(dots, largest)
    given = kernel.binding((16,), "i32")
    codes, digits = kernel.binding((count, 64), "i8"), kernel.binding((count,), "i32")
    out, zero = kernel.output((16,), "i32"), kernel.constant(0)
    sums = given.load([zero], WORDS)
    partial = dots.begun(kernel, sums)
    for i in range(count):
        place = kernel.constant(i)
        operands = dots.operands(kernel, codes.load([place, zero], BYTES), largest)
        x = dots.inputs(kernel, digits.load_scalar([place]))
        partial = dots.added(kernel, partial, operands, x)
    out.store(dots.ended(kernel, sums, partial), [zero], WORDS)
    return function(name, kernel, [(16,), (count, 16), (count,)])


def conversions(flavour: Flavour) -> str:
    """16 floats to words, and those to bytes."""
    kernel, made = Kernel("convert_kernel"), INSTRUCTIONS[flavour]
    x = kernel.binding((16,), "f32")
    out, zero = kernel.output((20,), "i32"), kernel.constant(0)
    assert made.nearest
    words = made.nearest(kernel, x.load([zero], FLOATS))
    out.store(words, [zero], WORDS)
    narrow = kernel.bitcast(made.narrow(kernel, words), "vector<16xi8>", "vector<4xi32>")
    out.store(narrow, [kernel.constant(16)], "vector<4xi32>")
    return function("convert", kernel, [(16,)], 20)


def expansion(flavour: Flavour, kind: str) -> str:
    """Entries, what stands elsewhere, and a map: entries in their places."""
    name, lanes, element = ("bytes", 64, "i8") if kind == BYTES else ("floats", 16, "f32")
    kernel = Kernel(f"{name}_kernel")
    values, none = (kernel.binding((lanes,), element) for _ in range(2))
    bits = kernel.binding((1,), "i64")
    out, zero = kernel.output((lanes,), element), kernel.constant(0)
    word = bits.load_scalar([zero])
    if lanes == 16:
        word = kernel.value(f"arith.trunci {word} : i64 to i16")
    expand = INSTRUCTIONS[flavour].expander(kernel, kind)
    found = expand(values.load([zero], kind), none.load([zero], kind), word)
    out.store(found, [zero], kind)
    return function(name, kernel, [(16,), (16,), (2,)])


class Given:
    """A map in an operand."""

    def __init__(self, kernel: Kernel) -> None:
        argument = kernel.argument()
        self.bits = kernel.region(argument, 0, (1,), "i64")
        self.halves = kernel.region(argument, 0, (2,), "i32")
        self.kernel = kernel

    def whole(self) -> str:
        return self.bits.load_scalar([self.kernel.constant(0)])

    def half(self, number: int) -> str:
        return self.halves.load_scalar([self.kernel.constant(number)])


def placement(flavour: Flavour, count: int) -> str:
    """Kept bytes, what stands elsewhere, and a map that keeps `count` of four: all in place."""
    kernel, kept = Kernel(f"placed_{count}_kernel"), f"vector<{16 * count}xi8>"
    values, none = kernel.binding((16 * count,), "i8"), kernel.binding((64,), "i8")
    given, out, zero = Given(kernel), kernel.output((64,), "i8"), kernel.constant(0)
    place = INSTRUCTIONS[flavour].place
    found = place(kernel, values.load([zero], kept), count, given, none.load([zero], BYTES))
    out.store(found, [zero], BYTES)
    return function(f"placed_{count}", kernel, [(4 * count,), (16,), (2,)])


def permutation(flavour: Flavour) -> str:
    """Four floats and words: in each lane the float that its word says."""
    kernel, permute = Kernel("permuted_kernel"), INSTRUCTIONS[flavour].permute
    assert permute
    values, places = kernel.binding((4,), "f32"), kernel.binding((16,), "i32")
    out, zero = kernel.output((16,), "f32"), kernel.constant(0)
    found = permute(kernel, values.load([zero], "vector<4xf32>"), places.load([zero], WORDS))
    out.store(found, [zero], FLOATS)
    return function("permuted", kernel, [(4,), (16,)])


def shuffle(flavour: Flavour) -> str:
    """Codes of a table of bytes: those bytes."""
    kernel, found = Kernel("shuffled_kernel"), INSTRUCTIONS[flavour].shuffle
    assert found
    codes, zero = kernel.binding((64,), "i8"), kernel.constant(0)
    out = kernel.output((64,), "i8")
    out.store(found(kernel, TABLE, codes.load([zero], BYTES), 64), [zero], BYTES)
    return function("shuffled", kernel, [(16,)])


def look_up(flavour: Flavour) -> str:
    """Codes of a table of 16 words: those words."""
    kernel = Kernel("looked_up_kernel")
    codes, zero = kernel.binding((16,), "i32"), kernel.constant(0)
    out = kernel.output((16,), "f32")
    found = INSTRUCTIONS[flavour].look_up(kernel, WORD_TABLE, codes.load([zero], WORDS))
    out.store(found, [zero], FLOATS)
    return function("looked_up", kernel, [(16,)])


def function(name: str, kernel: Kernel, shapes: list[tuple[int, ...]], size: int = 16) -> str:
    """A public function that dispatches a kernel; the host hands over floats only."""
    kinds = [f"tensor<{'x'.join(map(str, shape))}xf32>" for shape in shapes]
    arguments = ", ".join(f"%a{i}: {kind}" for i, kind in enumerate(kinds))
    values = ", ".join(f"%a{i}" for i in range(len(kinds)))
    result = f"tensor<{size}xf32>"
    return (
        f"{kernel.text()}func.func @{name}({arguments}) -> {result} {{\n"
        f"  %one = arith.constant 1 : index\n"
        f"  %y = flow.dispatch @{kernel.name}::@{kernel.name}[%one, %one]({values})"
        f" : ({', '.join(kinds)}) -> {result}\n"
        f"  return %y : {result}\n}}\n"
    )


def words_of(dots: Dots, largest: int) -> int:
    """As many as may be added before sums are ended."""
    return max(1, dots.together(largest))


def called(
    module: Loaded | arm.Emulated, name: str, arrays: list[NDArray[np.int32]]
) -> NDArray[np.int32]:
    """What a function makes of words."""
    floats = [torch.from_numpy(array.view(np.float32).copy()) for array in arrays]
    found = module.fetch(module.call(name, [module.put(array) for array in floats]))
    return np.asarray(found.numpy().view(np.int32))


@pytest.mark.parametrize("largest", LARGEST)
@pytest.mark.parametrize("extreme", [False, True])
def test_products_are_those_of_unsigned_codes_and_signed_digits_in_every_lane(
    module: Loaded | arm.Emulated, flavour: Flavour, largest: int, extreme: bool
) -> None:
    dots = INSTRUCTIONS[flavour].dots
    assert dots
    count, generator = words_of(dots, largest), np.random.default_rng(0)
    codes = generator.integers(0, largest, (count, 64), np.uint8, endpoint=True)
    digits = generator.integers(-128, 128, (count, 4), np.int8)
    if extreme:  # the largest sums that there are
        codes[:], digits[:] = largest, -128
    sums = generator.integers(-(2**20), 2**20, 16, np.int32)
    given = [sums, codes.view(np.int32), digits.view(np.int32).reshape(count)]
    expected = []
    for lane in range(16):
        total = int(sums[lane])
        for word in range(count):
            for i in range(4):
                code = int(codes[word, 4 * lane + i]) - dots.below(largest)
                total += code * int(digits[word, i])
        expected.append(total)
    assert called(module, f"up_to_{largest}", given).tolist() == expected


def test_floats_become_the_nearest_words_and_those_their_lowest_bytes(
    module: Loaded | arm.Emulated,
) -> None:
    values = np.array(
        [
            *(0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, 8388607.5, -8388607.5),
            *(127, -128, 300, -300, 0.0, -0.0, 1e6),
        ],
        np.float32,
    )
    found = called(module, "convert", [values.view(np.int32)])
    nearest = [round(float(value)) for value in values]  # Python's: ties to even
    assert found[:16].tolist() == nearest
    assert found[16:].view(np.uint8).tolist() == [word % 256 for word in nearest]


def in_place(
    values: NDArray[np.int8], none: NDArray[np.int8], kept: NDArray[np.bool_]
) -> list[int]:
    """The definition: values in order where kept, `none` elsewhere."""
    left = iter(values.tolist())
    return [next(left) if k else other for k, other in zip(kept, none.tolist(), strict=True)]


def bits_of(kept: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Lanes as bits, the first the lowest, of 64."""
    full = np.zeros(64, np.bool_)
    full[: len(kept)] = kept
    return np.packbits(full, bitorder="little").view(np.int32)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_entries_are_expanded_into_the_lanes_of_a_map(
    module: Loaded | arm.Emulated, share: float
) -> None:
    generator = np.random.default_rng(1)
    for lanes, kind, name in ((64, np.int8, "bytes"), (16, np.float32, "floats")):
        values, none = (generator.integers(-128, 128, lanes).astype(kind) for _ in range(2))
        kept = generator.random(lanes) < share
        given = [values.view(np.int32), none.view(np.int32), bits_of(kept)]
        found = called(module, name, given).view(kind)
        assert found.tolist() == in_place(values, none, kept)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_bytes_of_which_every_word_keeps_equally_many_are_placed(
    module: Loaded | arm.Emulated, count: int
) -> None:
    generator = np.random.default_rng(2)
    for _ in range(3):
        orders = generator.permuted(np.tile(np.arange(4), (16, 1)), axis=1)
        kept = (orders < count).flatten()
        values = generator.integers(-128, 128, 16 * count).astype(np.int8)
        none = np.repeat(generator.integers(-128, 128, 16), 4).astype(np.int8)  # of every word
        given = [values.view(np.int32), none.view(np.int32), bits_of(kept)]
        found = called(module, f"placed_{count}", given).view(np.int8)
        assert found.tolist() == in_place(values, none, kept)


def test_floats_are_permuted_by_two_bits_and_no_other(
    module: Loaded | arm.Emulated, flavour: Flavour
) -> None:
    if INSTRUCTIONS[flavour].permute is None:
        pytest.skip(f"{flavour} puts weights in place")
    generator = np.random.default_rng(3)
    values = generator.standard_normal(4).astype(np.float32)
    places = generator.integers(-(2**31), 2**31, 16, np.int64).astype(np.int32)
    found = called(module, "permuted", [values.view(np.int32), places]).view(np.float32)
    assert found.tolist() == values[places & 3].tolist()


def test_bytes_and_words_are_looked_up_in_tables_of_sixteen(
    module: Loaded | arm.Emulated,
) -> None:
    generator = np.random.default_rng(4)
    codes = generator.permutation(np.arange(64, dtype=np.uint8) % 16)
    found = called(module, "shuffled", [codes.view(np.int32)]).view(np.uint8)
    assert found.tolist() == [TABLE[code] for code in codes]
    words = generator.permutation(np.arange(16, dtype=np.int32))
    assert called(module, "looked_up", [words]).tolist() == [WORD_TABLE[word] for word in words]
