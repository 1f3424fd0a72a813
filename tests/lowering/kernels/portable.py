"""Kernels of every flavour on any processor: each instruction in their text written out in MLIR.

What an instruction does is Intel's or Arm's description of it, lane by lane; nothing here is of the
kernels.
Those of AMX stand in `portable_tiles.py`.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from tests.lowering.kernels import portable_tiles
from trinity.lowering.kernels.cpu.flavour import missing_here
from trinity.lowering.kernels.cpu.instructions import Flavour
from trinity.lowering.module.compile import compile_text
from trinity.lowering.targets.targets import Target

CALL = re.compile(
    r"( *)(?:(%\w+) = )?llvm\.call_intrinsic "
    r'"llvm\.(?:x86|aarch64)\.((?:avx|ldtile|tile|tdp|neon)[\w.]+)"\(([^)]*)\) : .*'
)
KERNEL = re.compile(r"( *)func\.func @\w+\([^)]*!stream\.binding[^)]*\) \{")
WORDS = "vector<16xi32>"
Lines = list[str]


def compiled(text: str, flavour: Flavour, target: Target) -> bytes:
    """A module for this machine; instructions that its processor lacks are written out."""
    return compile_text(portable(text) if missing_here(flavour) else text, target)


def for_any_processor(target: Target) -> Target:
    """The target without AVX-512."""
    flags = [flag for flag in target.flags if "target-cpu" not in flag]
    return replace(target, flags=(*flags, "--iree-llvmcpu-target-cpu=haswell"))


def portable(text: str) -> str:
    """The same module without an instruction that some processor lacks."""
    numbers = count()

    def written_out(found: re.Match[str]) -> str:
        indent, result, name, operands = found.groups()
        lines = INSTRUCTIONS[name](f"%e{next(numbers)}_", result, operands.split(", "))
        return "\n".join(indent + line for line in lines)

    memory = "\n".join([*MEMORY, *(portable_tiles.MEMORY if "ldtilecfg" in text else [])])
    text = KERNEL.sub(lambda found: f"{found[0]}\n{memory}", text)
    text = CALL.sub(written_out, text)
    assert set(re.findall(r"llvm\.(?:x86|aarch64)\.[\w.]+", text)) <= {"llvm.x86.sse2.pause"}
    return text


# Room for `expand` and `looked_up`, at the top of each kernel.
MEMORY = [
    "%e_zero = arith.constant 0 : index",
    "%e_one = arith.constant 1 : index",
    *(
        f"%e_{use}_{kind} = memref.alloca() : memref<{lanes}x{kind}>"
        for lanes, kind in ((64, "i8"), (16, "f32"), (16, "i32"))
        for use in ("given", "placed")
    ),
]


def dot_product(lanes: int, shifts: tuple[str, str]) -> Callable[[str, str, list[str]], Lines]:
    """VPDPBUSD, SDOT, USDOT: to each word, add the products of its 4 bytes with 4 others.

    shifts: as of `products_of_bytes`, for unsigned and signed bytes
    """
    bytes_, words = f"vector<{4 * lanes}xi8>", f"vector<{lanes}xi32>"

    def written_out(new: str, result: str, operands: list[str]) -> Lines:
        total, *factors = operands
        names = f"{new}l", f"{new}r"
        lines = [
            f"{name} = vector.bitcast {factor} : {bytes_} to {words}"
            for name, factor in zip(names, factors, strict=True)
        ]
        made = portable_tiles.products_of_bytes(new, result, total, names, shifts)
        return lines + [line.replace(WORDS, words) for line in made]

    return written_out


def products_of_pairs(new: str, result: str, operands: list[str]) -> Lines:
    """VPMADDUBSW: products of unsigned and signed bytes, two added in a halfword, saturated."""
    halves, wide = "vector<16xi16>", "vector<16xi32>"
    lines = [
        f"{new}least = arith.constant dense<-32768> : {wide}",
        f"{new}most = arith.constant dense<32767> : {wide}",
        f"{new}by = arith.constant dense<8> : {halves}",
    ]
    for side, factor, kind in zip("lr", operands, "us", strict=True):
        lines += [
            f"{new}{side} = vector.bitcast {factor} : vector<32xi8> to {halves}",
            f"{new}{side}up = arith.shli {new}{side}, {new}by : {halves}",
            f"{new}{side}low = arith.shr{kind}i {new}{side}up, {new}by : {halves}",
            f"{new}{side}high = arith.shr{kind}i {new}{side}, {new}by : {halves}",
        ]
        lines += [
            f"{new}{side}{part}w = arith.extsi {new}{side}{part} : {halves} to {wide}"
            for part in ("low", "high")
        ]
    return [
        *lines,
        *(
            f"{new}{part} = arith.muli {new}l{part}w, {new}r{part}w : {wide}"
            for part in ("low", "high")
        ),
        f"{new}sum = arith.addi {new}low, {new}high : {wide}",
        f"{new}above = arith.maxsi {new}sum, {new}least : {wide}",
        f"{new}within = arith.minsi {new}above, {new}most : {wide}",
        f"{result} = arith.trunci {new}within : {wide} to {halves}",
    ]


def sums_of_pairs(new: str, result: str, operands: list[str]) -> Lines:
    """VPMADDWD: products of halfwords, two added in a word."""
    words = "vector<8xi32>"
    lines = [f"{new}by = arith.constant dense<16> : {words}"]
    for side, factor in zip("lr", operands, strict=True):
        lines += [
            f"{new}{side} = vector.bitcast {factor} : vector<16xi16> to {words}",
            f"{new}{side}up = arith.shli {new}{side}, {new}by : {words}",
            f"{new}{side}low = arith.shrsi {new}{side}up, {new}by : {words}",
            f"{new}{side}high = arith.shrsi {new}{side}, {new}by : {words}",
        ]
    return [
        *lines,
        *(
            f"{new}{part} = arith.muli {new}l{part}, {new}r{part} : {words}"
            for part in ("low", "high")
        ),
        f"{result} = arith.addi {new}low, {new}high : {words}",
    ]


def to_nearest(lanes: int) -> Callable[[str, str, list[str]], Lines]:
    """VCVTPS2DQ, FCVTNS: floats to words, ties to even."""
    floats, words = f"vector<{lanes}xf32>", f"vector<{lanes}xi32>"

    def written_out(new: str, result: str, operands: list[str]) -> Lines:
        return [
            f"{new}even = math.roundeven {operands[0]} : {floats}",
            f"{result} = arith.fptosi {new}even : {floats} to {words}",
        ]

    return written_out


def low_bytes(new: str, result: str, operands: list[str]) -> Lines:
    """VPMOVDB: the lowest byte of each word."""
    return [f"{result} = arith.trunci {operands[0]} : {WORDS} to vector<16xi8>"]


def expand(lanes: int, kind: str) -> Callable[[str, str, list[str]], Lines]:
    """VPEXPANDB, VEXPANDPS: the first values, in order, in the lanes whose bits are set."""
    vector, memory, bits = f"vector<{lanes}x{kind}>", f"memref<{lanes}x{kind}>", f"i{lanes}"

    def written_out(new: str, result: str, operands: list[str]) -> Lines:
        values, other, mask = operands
        given, placed = f"%e_given_{kind}", f"%e_placed_{kind}"
        return [
            f"vector.store {values}, {given}[%e_zero] : {memory}, {vector}",
            f"vector.store {other}, {placed}[%e_zero] : {memory}, {vector}",
            f"{new}one = vector.bitcast {mask} : vector<{lanes}xi1> to vector<1x{bits}>",
            f"{new}bits = vector.extract {new}one[0] : {bits} from vector<1x{bits}>",
            f"{new}end = arith.constant {lanes} : index",
            f"{new}taken = scf.for {new}i = %e_zero to {new}end step %e_one "
            f"iter_args({new}next = %e_zero) -> (index) {{",
            f"  {new}by = arith.index_cast {new}i : index to {bits}",
            f"  {new}shifted = arith.shrui {new}bits, {new}by : {bits}",
            f"  {new}bit = arith.trunci {new}shifted : {bits} to i1",
            f"  {new}value = memref.load {given}[{new}next] : {memory}",
            f"  {new}old = memref.load {placed}[{new}i] : {memory}",
            f"  {new}kept = arith.select {new}bit, {new}value, {new}old : {kind}",
            f"  memref.store {new}kept, {placed}[{new}i] : {memory}",
            f"  {new}step = arith.index_castui {new}bit : i1 to index",
            f"  {new}after = arith.addi {new}next, {new}step : index",
            f"  scf.yield {new}after : index",
            "}",
            f"{result} = vector.load {placed}[%e_zero] : {memory}, {vector}",
        ]

    return written_out


def looked_up(lanes: int, kind: str, group: int) -> Callable[[str, str, list[str]], Lines]:
    """VPERMD, VPSHUFB: of each `group` lanes those that the lowest bits of an index say; of bytes
    zero where its top bit is set.
    """
    vector = f"vector<{lanes}x{kind}>"
    memory = f"memref<{64 if kind == 'i8' else 16}x{kind}>"

    def written_out(new: str, result: str, operands: list[str]) -> Lines:
        given, placed = f"%e_given_{kind}", f"%e_placed_{kind}"
        return [
            f"vector.store {operands[0]}, {given}[%e_zero] : {memory}, {vector}",
            f"vector.store {operands[1]}, {placed}[%e_zero] : {memory}, {vector}",
            f"{new}end = arith.constant {lanes} : index",
            f"{new}low = arith.constant {group - 1} : {kind}",
            f"{new}group = arith.constant {group} : index",
            f"{new}none = arith.constant 0 : {kind}",
            f"scf.for {new}i = %e_zero to {new}end step %e_one {{",
            f"  {new}index = memref.load {placed}[{new}i] : {memory}",
            f"  {new}within = arith.andi {new}index, {new}low : {kind}",
            f"  {new}own = arith.index_castui {new}within : {kind} to index",
            f"  {new}number = arith.divui {new}i, {new}group : index",
            f"  {new}first = arith.muli {new}number, {new}group : index",
            f"  {new}at = arith.addi {new}first, {new}own : index",
            f"  {new}value = memref.load {given}[{new}at] : {memory}",
            f"  {new}negative = arith.cmpi slt, {new}index, {new}none : {kind}",
            *(
                [f"  {new}kept = arith.select {new}negative, {new}none, {new}value : i8"]
                if kind == "i8"
                else [f"  {new}kept = arith.addi {new}value, {new}none : {kind}"]
            ),
            f"  memref.store {new}kept, {placed}[{new}i] : {memory}",
            "}",
            f"{result} = vector.load {placed}[%e_zero] : {memory}, {vector}",
        ]

    return written_out


def permuted(new: str, result: str, operands: list[str]) -> Lines:
    """VPERMILPS: of each four floats those that the lowest two bits of an index say."""
    floats, words = "vector<8xf32>", "vector<8xi32>"
    return [
        f"{new}bits = vector.bitcast {operands[0]} : {floats} to {words}",
        *looked_up(8, "i32", 4)(new, f"{new}found", [f"{new}bits", operands[1]]),
        f"{result} = vector.bitcast {new}found : {words} to {floats}",
    ]


def permuted_by_words(lanes: int) -> Callable[[str, str, list[str]], Lines]:
    """VPERMPS: of all floats those that the lowest bits of an index say."""
    floats, words = f"vector<{lanes}xf32>", f"vector<{lanes}xi32>"

    def written_out(new: str, result: str, operands: list[str]) -> Lines:
        return [
            f"{new}bits = vector.bitcast {operands[0]} : {floats} to {words}",
            *looked_up(lanes, "i32", lanes)(new, f"{new}found", [f"{new}bits", operands[1]]),
            f"{result} = vector.bitcast {new}found : {words} to {floats}",
        ]

    return written_out


def table_of_bytes(new: str, result: str, operands: list[str]) -> Lines:
    """TBL: of 16 bytes those that an index says, zero where it is 16 or more."""
    kind = "vector<16xi8>"
    return [
        *looked_up(16, "i8", 16)(new, f"{new}found", operands),
        f"{new}last = arith.constant dense<15> : {kind}",
        f"{new}nothing = arith.constant dense<0> : {kind}",
        f"{new}out = arith.cmpi ugt, {operands[1]}, {new}last : {kind}",
        f"{result} = arith.select {new}out, {new}nothing, {new}found : vector<16xi1>, {kind}",
    ]


INSTRUCTIONS: dict[str, Callable[[str, str, list[str]], Lines]] = {
    "avx512.vpdpbusd.512": dot_product(16, ("shrui", "shrsi")),
    "avx512.vpdpbusd.256": dot_product(8, ("shrui", "shrsi")),
    "neon.usdot.v4i32.v16i8": dot_product(4, ("shrui", "shrsi")),
    "neon.sdot.v4i32.v16i8": dot_product(4, ("shrsi", "shrsi")),
    "avx2.pmadd.ub.sw": products_of_pairs,
    "avx2.pmadd.wd": sums_of_pairs,
    "avx.vpermilvar.ps.256": permuted,
    "avx2.permd": looked_up(8, "i32", 8),
    "avx2.pshuf.b": looked_up(32, "i8", 16),
    "avx2.permps": permuted_by_words(8),
    "avx512.pshuf.b.512": looked_up(64, "i8", 16),
    "avx512.permvar.sf.512": permuted_by_words(16),
    "neon.tbl1.v16i8": table_of_bytes,
    "avx512.mask.cvtps2dq.512": to_nearest(16),
    "avx.cvt.ps2dq.256": to_nearest(8),
    "neon.fcvtns.v4i32.v4f32": to_nearest(4),
    "avx512.mask.pmov.db.512": low_bytes,
    "avx512.mask.expand.v64i8": expand(64, "i8"),
    "avx512.mask.expand.v16f32": expand(16, "f32"),
    **portable_tiles.INSTRUCTIONS,
}
