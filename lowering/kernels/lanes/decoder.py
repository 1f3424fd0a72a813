"""Entries of `decoder.cuh`, and calls of those that take any numbers.

The order of operands and numbers is that of the source.
"""

from trinity.lowering.kernels.decoder_calls import Typed, bits_of
from trinity.lowering.kernels.lanes.dispatches import Dispatches
from trinity.lowering.kernels.lanes.executable import THREADS, Entry
from trinity.lowering.mlir.builder import tensor_type

NORM, CACHE = Entry("decoder_norm", 2, 1, 2), Entry("decoder_cache", 5, 2, 3)
QUERIES = (1, 4)  # of a block of threads
ATTENTION = {count: Entry(f"decoder_attention_{count}", 6, 1, 7) for count in QUERIES}
ELEMENTS = {of: Entry(f"decoder_{of}", 2, 1, 1) for of in ("add", "gate")}
DECODER = (NORM, CACHE, *ATTENTION.values(), *ELEMENTS.values())

# The same for one token, where what they make is in digits: of NVIDIA's source alone.
IN_DIGITS = {
    NORM.name: Entry("decoder_norm_digits", 2, 1, 2),
    ATTENTION[1].name: Entry("decoder_attention_digits", 6, 1, 7),
    ELEMENTS["gate"].name: Entry("decoder_gate_digits", 2, 1, 1),
}
ADD_NORM = Entry("decoder_add_norm_digits", 3, 2, 2)
DIGITS_DECODER = (*IN_DIGITS.values(), ADD_NORM)


def one_token(width: int) -> str:
    """The type of float32 [1, width]."""
    return tensor_type((1, width), "f32")


def entry_making(entry: Entry, width: int, kind: str) -> str:
    """The name of an entry, or of its like that makes digits.  kind: of what it makes"""
    return (entry if kind == one_token(width) else IN_DIGITS[entry.name]).name


def normed(made: Dispatches, x: str, scale: Typed, width: int, epsilon: float, kind: str) -> Typed:
    """x: [1, width]   scale: [width]   kind: of the result"""
    numbers = (width, bits_of(epsilon))
    entry = entry_making(NORM, width, kind)
    return made.dispatch(entry, (1, 1), [(x, one_token(width)), scale], kind, numbers), kind


def added_and_normed(
    made: Dispatches, a: str, b: str, scale: Typed, width: int, epsilon: float, kind: str
) -> tuple[str, Typed]:
    """`a + b`, and its norm in digits.  kind: of the norm"""
    floats, numbers = one_token(width), (width, bits_of(epsilon))
    operands = [(a, floats), (b, floats), scale]
    total, norm = made.pair(ADD_NORM, (1, 1), operands, (floats, kind), numbers)
    return total, (norm, kind)


def added(made: Dispatches, a: str, b: str, width: int) -> str:
    """a, b: [1, width]   -> the same shape"""
    return _element_by_element(made, ELEMENTS["add"].name, a, b, width, one_token(width))


def gated(made: Dispatches, a: str, b: str, width: int, kind: str) -> Typed:
    """`silu(a) * b`.  a, b: [1, width]   kind: of the result"""
    entry = entry_making(ELEMENTS["gate"], width, kind)
    return _element_by_element(made, entry, a, b, width, kind), kind


def _element_by_element(made: Dispatches, entry: str, a: str, b: str, width: int, kind: str) -> str:
    floats, grid = one_token(width), (-(-width // THREADS), 1)
    return made.dispatch(entry, grid, [(a, floats), (b, floats)], kind, (width,))
