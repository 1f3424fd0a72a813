"""What processors can do, by flavour: a small table of instructions, each with one meaning.

The rest of the kernels' text is the same for all.  Tests compare every instruction with a plain
loop over its lanes.  A vector of the text is 16 words or 64 bytes wide whatever the registers are.

| flavour     | processors                              | products of codes and digits             |
|-------------|-----------------------------------------|------------------------------------------|
| amx         | Intel from Sapphire Rapids on           | `tdpbssd` for many rows, else as below   |
| avx512-vnni | Intel from Ice Lake, AMD from Zen 4 on  | `vpdpbusd`, 64 bytes                     |
| avx-vnni    | Intel from Alder Lake, AMD from Zen 5 on | `vpdpbusd`, 32 bytes                    |
| avx2        | x86-64-v3: Intel from Haswell, AMD from Zen on | `vpmaddubsw`, then `vpmaddwd`     |
| neon-i8mm   | Arm v8.6 and newer                      | `usdot`, 16 bytes                        |
| neon-dot    | Arm v8.2 with dot products              | `sdot`, 16 bytes                         |
| plain       | any                                     | none: codes are widened to float32       |
"""

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from trinity.lowering.kernels.cpu.dots import Dots, PairDots, WordDots
from trinity.lowering.kernels.cpu.kernel_text import (
    FLOATS,
    LANES,
    WORDS,
    Kernel,
    joined,
    parts,
)
from trinity.lowering.kernels.cpu.looking_up import (
    Bytes,
    LookUp,
    looked_up,
    looked_up_avx2,
    looked_up_avx512,
)
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.kernels.cpu.placing import (
    Expander,
    Place,
    expander,
    expander_avx2,
    expander_avx512,
    permuted_avx2,
    placed,
    placed_avx2,
    placed_avx512,
)
from trinity.methods.formats import WeightFormat

Flavour = Literal["amx", "avx512-vnni", "avx-vnni", "avx2", "neon-i8mm", "neon-dot", "plain"]
# From so many rows on matrix units are faster: 4096 x 4096 of int4 took 0.8 times as long at six
# rows in groups of 32 (1.1 in groups of 16), 1.2 times at four.
TILED_ROWS = 6


def nearest_avx512(kernel: Kernel, values: str) -> str:
    """`vcvtps2dq`: 16 floats as words, ties to even."""
    every, none = kernel.constant(-1, "i16"), kernel.constant(0, WORDS)
    return kernel.value(
        f'llvm.call_intrinsic "llvm.x86.avx512.mask.cvtps2dq.512"({values}, {none}, {every}, '
        f"{kernel.constant(4, 'i32')}) : ({FLOATS}, {WORDS}, i16, i32) -> {WORDS}"
    )


@dataclass(frozen=True)
class Nearest:
    """Floats as words, ties to even, a register at a time.  name: of the intrinsic"""

    name: str
    lanes: int

    def __call__(self, kernel: Kernel, values: str) -> str:
        """16 floats."""
        floats, words = (f"vector<{self.lanes}x{element}>" for element in ("f32", "i32"))
        found = [
            kernel.value(f'llvm.call_intrinsic "{self.name}"({part}) : ({floats}) -> {words}')
            for part in parts(kernel, values, FLOATS, LANES // self.lanes)
        ]
        return joined(kernel, found, "i32", self.lanes)


def low_bytes_avx512(kernel: Kernel, words: str) -> str:
    """`vpmovdb`: the lowest byte of each of 16 words."""
    kind = "vector<16xi8>"
    every, none = kernel.constant(-1, "i16"), kernel.constant(0, kind)
    return kernel.value(
        f'llvm.call_intrinsic "llvm.x86.avx512.mask.pmov.db.512"({words}, {none}, {every})'
        f" : ({WORDS}, {kind}, i16) -> {kind}"
    )


def low_bytes(kernel: Kernel, words: str) -> str:
    """The lowest byte of each of 16 words."""
    return kernel.value(f"arith.trunci {words} : {WORDS} to vector<16xi8>")


def pause_x86(kernel: Kernel) -> None:
    """`pause`, in loops that wait."""
    kernel.line('llvm.call_intrinsic "llvm.x86.sse2.pause"() : () -> ()')


@dataclass(frozen=True)
class Instructions:
    """What the kernels of one flavour may use.

    features: in Linux's words, of processors that have all of it
    machine: as `platform.machine()` says it, None for any
    registers: how many vectors of 16 floats they hold
    dots: products of codes and digits, None where codes are widened to floats
    digits: of an activation, as many as the model's type needs
    expands: kept entries are put in place by one instruction; without it a stream of up to 16 bits
        an entry takes longer than reading all of them
    picks: activations are moved to kept codes, rather than those to their places (`picking.py`)
    permute: moves them to kept floats, None where those are moved (`permuting.py`)
    nearest: floats to words   narrow: words to bytes
    shuffle: looks bytes up, where there are dots   look_up: looks floats up
    place, expander: kept entries in their places
    pause: in loops that wait, None without one
    fewer: the flavour of products of few rows, where this one is for many
    """

    flavour: Flavour
    features: frozenset[str]
    machine: str | None
    registers: int
    dots: Dots | None
    nearest: "Convert | None" = None
    narrow: "Convert" = low_bytes
    shuffle: Bytes | None = None
    look_up: LookUp = looked_up
    place: Place = placed
    expander: Expander = expander
    pause: "Pause | None" = None
    fewer: Flavour | None = None
    digits: int = 3
    expands: bool = False
    picks: bool = False
    permute: "Permute | None" = None

    def panels(self, weight_format: WeightFormat) -> Panels:
        """Where the entries of a weight stand for these instructions."""
        return Panels(weight_format, self.picks, self.expands, self.permute is not None)

    def of(self, panels: Panels) -> "Instructions":
        """Those of products with a weight: digits are multiplied only with integers."""
        no_digits = panels.codes and panels.integers is None
        return replace(self, dots=None) if no_digits else self

    @property
    def matrix(self) -> bool:
        """Whether products of many rows are those of matrix units."""
        return self.fewer is not None


class Convert(Protocol):
    """16 lanes as 16 others."""

    def __call__(self, kernel: Kernel, values: str, /) -> str:
        """The vector's name."""
        ...


class Permute(Protocol):
    """Of four floats, in 16 lanes, those that the lower two bits of a word say."""

    def __call__(self, kernel: Kernel, four: str, places: str, /) -> str:
        """The vector's name."""
        ...


class Pause(Protocol):
    """Writes a line."""

    def __call__(self, kernel: Kernel, /) -> None:
        """See `Instructions`."""
        ...


AVX2 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"})
AVX512_VNNI = AVX2 | {"avx512f", "avx512bw", "avx512_vnni", "avx512_vbmi2"}
AMX = AVX512_VNNI | {"amx_tile", "amx_int8", "amx_bf16"}
X86, ARM = "x86_64", "aarch64"

_AVX512 = Instructions(
    "avx512-vnni",
    AVX512_VNNI,
    X86,
    registers=32,
    dots=WordDots("llvm.x86.avx512.vpdpbusd.512", 64, apart=False),
    nearest=nearest_avx512,
    narrow=low_bytes_avx512,
    shuffle=Bytes("llvm.x86.avx512.pshuf.b.512", 64),
    look_up=looked_up_avx512,
    place=placed_avx512,
    expander=expander_avx512,
    expands=True,
    pause=pause_x86,
)
_AVX2 = Instructions(
    "avx2",
    AVX2,
    X86,
    registers=8,
    dots=PairDots(),
    nearest=Nearest("llvm.x86.avx.cvt.ps2dq.256", 8),
    shuffle=Bytes("llvm.x86.avx2.pshuf.b", 32),
    look_up=looked_up_avx2,
    place=placed_avx2,
    expander=expander_avx2,
    pause=pause_x86,
    picks=True,
    permute=permuted_avx2,
)
_NEON = Instructions(
    "neon-dot",
    frozenset({"asimd", "asimddp"}),
    ARM,
    registers=8,
    dots=WordDots("llvm.aarch64.neon.sdot.v4i32.v16i8", 16, apart=True, signed=True),
    nearest=Nearest("llvm.aarch64.neon.fcvtns.v4i32.v4f32", 4),
    shuffle=Bytes("llvm.aarch64.neon.tbl1.v16i8", 16),
)
# From the one with the most to the one that needs nothing.
INSTRUCTIONS: dict[Flavour, Instructions] = {
    found.flavour: found
    for found in (
        replace(_AVX512, flavour="amx", features=AMX, fewer="avx512-vnni"),
        _AVX512,
        replace(
            _AVX2,
            flavour="avx-vnni",
            features=AVX2 | {"avx_vnni"},
            picks=False,  # 32 bytes of codes are one `vpdpbusd`, four of a word in each lane
            dots=WordDots("llvm.x86.avx512.vpdpbusd.256", 32, apart=True),
        ),
        _AVX2,
        replace(
            _NEON,
            flavour="neon-i8mm",
            features=_NEON.features | {"i8mm"},
            dots=WordDots("llvm.aarch64.neon.usdot.v4i32.v16i8", 16, apart=True),
        ),
        _NEON,
        Instructions("plain", frozenset(), None, registers=8, dots=None),
    )
}


def best(features: Set[str], machine: str) -> Instructions:
    """The flavour that a processor runs best."""
    return next(
        found
        for found in INSTRUCTIONS.values()
        if found.machine in (None, machine) and features >= found.features
    )


def for_rows(instructions: Instructions, rows: int) -> Instructions:
    """The instructions of a product of M rows: matrix units are slower where they are few."""
    few = instructions.fewer if rows < TILED_ROWS else None
    return replace(INSTRUCTIONS[few], digits=instructions.digits) if few else instructions


def for_type(instructions: Instructions, dtype: str) -> Instructions:
    """The instructions of products of a model whose activations are of a type.

    Three digits are 24 bits of a block's largest activation, what a float32 has.  A number of half
    precision has 11 bits or 8 of its own: two digits, 16 bits of the block's largest, round the
    largest 16 or 128 times less than the type did.
    """
    return instructions if dtype == "float32" else replace(instructions, digits=2)


def room_of(instructions: Instructions) -> int:
    """Sums of floats in flight: the rest of the registers are for weights and inputs."""
    return instructions.registers * 3 // 4
