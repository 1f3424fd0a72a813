"""AMX's instructions written out in MLIR, for `portable.py`: tile registers are scratch memory.

What each does is the "Operation" of Intel's manual, but for faults: what would be one does
something else here.  Rows of a tile are whole words; those of products are by the manual, too.

The products of floats are added in the manual's order: those of even and of odd places apart, from
zero, then both together, then that to the target.  Each product of two bfloat16 is exact.
"""

from collections.abc import Callable

WORDS, FLOATS = "vector<16xi32>", "vector<16xf32>"
CONFIG, TILES = "memref<64xi8>", "memref<8x16x16xi32>"
Lines = list[str]

# Registers, their sizes, and numbers, at the top of each kernel.
MEMORY = [
    f"%t_config = memref.alloca() : {CONFIG}",
    f"%t_tiles = memref.alloca() : {TILES}",
    *(f"%t_{n} = arith.constant {n} : index" for n in (0, 1, 2, 4, 8, 16, 48)),
    f"%t_none = arith.constant dense<0> : {WORDS}",
    "%t_no_sizes = arith.constant dense<0> : vector<64xi8>",
]


def configure(new: str, result: str, operands: list[str]) -> Lines:
    """LDTILECFG: sizes from memory, and zeros in every register."""
    return [
        f'{new}sizes = "llvm.load"({operands[0]}) <{{alignment = 1 : i64}}> '
        ": (!llvm.ptr) -> vector<64xi8>",
        f"vector.store {new}sizes, %t_config[%t_0] : {CONFIG}, vector<64xi8>",
        *_cleared(new),
    ]


def release(new: str, result: str, operands: list[str]) -> Lines:
    """TILERELEASE: no sizes, and zeros in every register."""
    return [
        f"vector.store %t_no_sizes, %t_config[%t_0] : {CONFIG}, vector<64xi8>",
        *_cleared(new),
    ]


def zero(new: str, result: str, operands: list[str]) -> Lines:
    """TILEZERO."""
    return [*_sizes(f"{new}a", operands[0]), *_zeros(new, f"{new}a_at")]


def load(new: str, result: str, operands: list[str]) -> Lines:
    """TILELOADD: rows from memory, zeros behind them and below."""
    register, base, stride = operands
    return [
        *_sizes(f"{new}a", register),
        *_zeros(new, f"{new}a_at"),
        *_each_row(new, base, stride),
        f'  {new}row = "llvm.intr.masked.load"({new}place, {new}mask, %t_none) '
        f"<{{alignment = 1 : i64}}> : (!llvm.ptr, vector<16xi1>, {WORDS}) -> {WORDS}",
        f"  vector.store {new}row, %t_tiles[{new}a_at, {new}i, %t_0] : {TILES}, {WORDS}",
        "}",
    ]


def store(new: str, result: str, operands: list[str]) -> Lines:
    """TILESTORED: rows to memory."""
    register, base, stride = operands
    return [
        *_sizes(f"{new}a", register),
        *_each_row(new, base, stride),
        f"  {new}row = vector.load %t_tiles[{new}a_at, {new}i, %t_0] : {TILES}, {WORDS}",
        f'  "llvm.intr.masked.store"({new}row, {new}place, {new}mask) '
        f"<{{alignment = 1 : i64}}> : ({WORDS}, !llvm.ptr, vector<16xi1>) -> ()",
        "}",
    ]


def of_bytes(left: str, right: str) -> Callable[[str, str, list[str]], Lines]:
    """TDPBSSD and its like.  left, right: as `products_of_bytes`"""

    def written_out(new: str, result: str, operands: list[str]) -> Lines:
        target = f"%t_tiles[{new}a_at, {new}i, %t_0] : {TILES}, {WORDS}"
        products = products_of_bytes(
            new, f"{new}sum", f"{new}total", (f"{new}left", f"{new}right"), (left, right)
        )
        return [
            *_rows_of_target(new, operands),
            f"  {new}before = vector.load {target}",
            f"  {new}after = {_steps(new)} iter_args({new}total = {new}before) -> ({WORDS}) {{",
            *_indented(_factors(new) + products),
            f"    scf.yield {new}sum : {WORDS}",
            "  }",
            f"  vector.store {new}after, {target}",
            "}",
        ]

    return written_out


def products_of_bytes(
    new: str, result: str, total: str, words: tuple[str, str], shifts: tuple[str, str]
) -> Lines:
    """To each word of the total, add the products of the 4 bytes of one with those of the other.

    shifts: of `arith`, that move a byte of each down: `shrsi` if it is signed, `shrui` if not
    """
    lines = [f"{new}top = arith.constant dense<24> : {WORDS}"]
    for i in range(4):
        following = result if i == 3 else f"{new}sum{i}"
        lines.append(f"{new}up{i} = arith.constant dense<{24 - 8 * i}> : {WORDS}")
        for side, word, shift in zip("lr", words, shifts, strict=True):
            lines += [
                f"{new}{side}s{i} = arith.shli {word}, {new}up{i} : {WORDS}",
                f"{new}{side}b{i} = arith.{shift} {new}{side}s{i}, {new}top : {WORDS}",
            ]
        lines += [
            f"{new}product{i} = arith.muli {new}lb{i}, {new}rb{i} : {WORDS}",
            f"{following} = arith.addi {total}, {new}product{i} : {WORDS}",
        ]
        total = following
    return lines


def of_bfloat16(new: str, result: str, operands: list[str]) -> Lines:
    """TDPBF16PS: words of two bfloat16.

    As the instruction does, IREE's threads take numbers below the least normal one for zeros.
    """
    body = [
        f"{new}by = arith.constant dense<16> : {WORDS}",
        f"{new}upper = arith.constant dense<-65536> : {WORDS}",
    ]
    for side in ("left", "right"):
        body += [
            f"{new}{side}_even = arith.shli {new}{side}, {new}by : {WORDS}",
            f"{new}{side}_odd = arith.andi {new}{side}, {new}upper : {WORDS}",
        ]
    for which in ("even", "odd"):
        left, right = f"{new}left_{which}", f"{new}right_{which}"
        body += [
            f"{left}_float = arith.bitcast {left} : {WORDS} to {FLOATS}",
            f"{right}_float = arith.bitcast {right} : {WORDS} to {FLOATS}",
            f"{new}{which}_sum = math.fma {left}_float, {right}_float, {new}{which} : {FLOATS}",
        ]
    target = f"%t_tiles[{new}a_at, {new}i, %t_0] : {TILES}, {WORDS}"
    return [
        f"{new}no = arith.constant dense<0.0> : {FLOATS}",
        *_rows_of_target(new, operands),
        f"  {new}apart:2 = {_steps(new)} "
        f"iter_args({new}even = {new}no, {new}odd = {new}no) -> ({FLOATS}, {FLOATS}) {{",
        *_indented(_factors(new) + body),
        f"    scf.yield {new}even_sum, {new}odd_sum : {FLOATS}, {FLOATS}",
        "  }",
        f"  {new}both = arith.addf {new}apart#0, {new}apart#1 : {FLOATS}",
        f"  {new}word_before = vector.load {target}",
        f"  {new}before = arith.bitcast {new}word_before : {WORDS} to {FLOATS}",
        f"  {new}after = arith.addf {new}before, {new}both : {FLOATS}",
        f"  {new}word_after = arith.bitcast {new}after : {FLOATS} to {WORDS}",
        f"  vector.store {new}word_after, {target}",
        "}",
    ]


def _sizes(new: str, register: str) -> Lines:
    """Of a register: its number `_at`, `_rows`, and the `_words` of each."""
    return [
        f"{new}_at = arith.index_cast {register} : i8 to index",
        f"{new}_rows_at = arith.addi {new}_at, %t_48 : index",
        f"{new}_rows_byte = memref.load %t_config[{new}_rows_at] : {CONFIG}",
        f"{new}_rows = arith.index_castui {new}_rows_byte : i8 to index",
        f"{new}_twice = arith.muli {new}_at, %t_2 : index",
        # Of two bytes, the upper one is zero: a row is 64 bytes at most.
        f"{new}_bytes_at = arith.addi {new}_twice, %t_16 : index",
        f"{new}_bytes_byte = memref.load %t_config[{new}_bytes_at] : {CONFIG}",
        f"{new}_bytes = arith.index_castui {new}_bytes_byte : i8 to index",
        f"{new}_words = arith.divui {new}_bytes, %t_4 : index",
    ]


def _zeros(new: str, at: str) -> Lines:
    """Zeros in the register of a number."""
    return [
        f"scf.for {new}z = %t_0 to %t_16 step %t_1 {{",
        f"  vector.store %t_none, %t_tiles[{at}, {new}z, %t_0] : {TILES}, {WORDS}",
        "}",
    ]


def _cleared(new: str) -> Lines:
    """Zeros in every register."""
    return [
        f"scf.for {new}register = %t_0 to %t_8 step %t_1 {{",
        *(f"  {line}" for line in _zeros(new, f"{new}register")),
        "}",
    ]


def _each_row(new: str, base: str, stride: str) -> Lines:
    """The head of a loop over a register's rows in memory: `place`, and the `mask` of its words."""
    return [
        f"{new}mask = vector.create_mask {new}a_words : vector<16xi1>",
        f"scf.for {new}i = %t_0 to {new}a_rows step %t_1 {{",
        f"  {new}number = arith.index_cast {new}i : index to i64",
        f"  {new}offset = arith.muli {new}number, {stride} : i64",
        f"  {new}place = llvm.getelementptr {base}[{new}offset] "
        ": (!llvm.ptr, i64) -> !llvm.ptr, i8",
    ]


def _rows_of_target(new: str, operands: list[str]) -> Lines:
    """The head of a loop over the rows of a product's target."""
    registers = zip("abc", operands, strict=True)
    return [
        *(line for name, register in registers for line in _sizes(f"{new}{name}", register)),
        f"scf.for {new}i = %t_0 to {new}a_rows step %t_1 {{",
    ]


def _steps(new: str) -> str:
    """The head of a loop over the words of the left factor's rows."""
    return f"scf.for {new}k = %t_0 to {new}b_words step %t_1"


def _factors(new: str) -> Lines:
    """A word of the `left` factor, in every lane, and the `right` factor's row that it meets."""
    return [
        f"{new}word = memref.load %t_tiles[{new}b_at, {new}i, {new}k] : {TILES}",
        f"{new}left = vector.broadcast {new}word : i32 to {WORDS}",
        f"{new}right = vector.load %t_tiles[{new}c_at, {new}k, %t_0] : {TILES}, {WORDS}",
    ]


def _indented(lines: Lines) -> Lines:
    return [f"    {line}" for line in lines]


INSTRUCTIONS: dict[str, Callable[[str, str, list[str]], Lines]] = {
    "ldtilecfg": configure,
    "tilerelease": release,
    "tilezero": zero,
    "tileloadd64": load,
    "tilestored64": store,
    "tdpbssd": of_bytes("shrsi", "shrsi"),
    "tdpbsud": of_bytes("shrsi", "shrui"),
    "tdpbusd": of_bytes("shrui", "shrsi"),
    "tdpbuud": of_bytes("shrui", "shrui"),
    "tdpbf16ps": of_bfloat16,
}
