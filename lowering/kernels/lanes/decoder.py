"""Entries of `decoder.cuh`, and calls of those that take any numbers.

The order of operands and numbers is that of the source.
"""

from typing import Literal

from trinity.lowering.kernels.decoder_calls import Typed, bits_of
from trinity.lowering.kernels.lanes.dispatches import Dispatches
from trinity.lowering.kernels.lanes.executable import THREADS, Entry
from trinity.lowering.mlir.builder import tensor_type

NORM, CACHE = Entry("decoder_norm", 2, 1, 2), Entry("decoder_cache", 5, 2, 3)
QUERIES = (1, 4)  # of a block of threads
ATTENTION = {count: Entry(f"decoder_attention_{count}", 6, 1, 7) for count in QUERIES}
ELEMENTS: dict[str, Entry] = {of: Entry(f"decoder_{of}", 2, 1, 1) for of in ("add", "gate")}
DECODER = (NORM, CACHE, *ATTENTION.values(), *ELEMENTS.values())


def normed(made: Dispatches, x: str, scale: Typed, width: int, epsilon: float) -> str:
    """x: [1, width]   scale: [width]   -> the shape of x"""
    kind = tensor_type((1, width), "f32")
    numbers = (width, bits_of(epsilon))
    return made.dispatch(NORM.name, (1, 1), [(x, kind), scale], kind, numbers)


def element_by_element(
    made: Dispatches, which: Literal["add", "gate"], a: str, b: str, width: int
) -> str:
    """`a + b`, or `silu(a) * b`.  a, b: [1, width]   -> the same shape"""
    kind = tensor_type((1, width), "f32")
    grid = (-(-width // THREADS), 1)
    return made.dispatch(ELEMENTS[which].name, grid, [(a, kind), (b, kind)], kind, (width,))
