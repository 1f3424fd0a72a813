"""What functions of a decoder's parts have in common on GPUs, whichever kernels they dispatch."""

import struct
from collections.abc import Callable, Mapping

from trinity.lowering.kernels.decoder_parts import AttentionFormat, Heads
from trinity.lowering.mlir.builder import Builder, tensor_type

Typed = tuple[str, str]  # a value and its type
Attended = Callable[[Mapping[str, Typed]], tuple[str, str, str]]
WIDEST = 256  # of a head
ALL = 2**31 - 1  # positions, for a window
RESULTS = ("q", "keys", "values")  # whose types those of an attention's results are


def heads_refusal(heads: Heads) -> str | None:
    """Why an attention has no kernel, or None."""
    if heads.width % 4 or heads.width > WIDEST:
        return f"a head is not a multiple of 4 wide, or wider than {WIDEST}"
    return None


def attention_refusal(attention: AttentionFormat) -> str | None:
    """Why an attention has no kernel of its own, or None."""
    return heads_refusal(attention.heads)


def attention_function(build: Builder, attention: AttentionFormat, attended: Attended) -> str:
    """The private function `(q, k, v, cos, sin, position, keys, values) -> out, keys, values`.

    attended: appends the calls, and gives the results, of which the caches are written in place
    q, k, v: not rotated yet
    """
    shapes = attention.activations()
    given = {key: (f"%arg_{key}", tensor_type(*of)) for key, of in shapes.items()}
    found = attended(given)
    arguments = [f"{value}: {kind}" for value, kind in given.values()]
    results = [(value, given[key][1]) for key, value in zip(RESULTS, found, strict=True)]
    return build.function_of(attention.function, arguments, results)


def bits_of(number: float) -> int:
    """Of a float32, as a call passes them: the compiler takes only integers."""
    (bits,) = struct.unpack("<i", struct.pack("<f", number))
    return int(bits)
