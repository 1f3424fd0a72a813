"""Attention of some tokens: keys and values to the caches, then softmax over them."""

from collections.abc import Mapping

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.decoder_parts import AttentionFormat, Heads
from trinity.lowering.kernels.lanes.decoder import ATTENTION, CACHE, QUERIES, bits_of
from trinity.lowering.kernels.lanes.dispatches import Dispatches, Typed
from trinity.lowering.kernels.lanes.executable import Compiled
from trinity.lowering.mlir.builder import tensor_type

WIDEST = 256  # of a head
ALL = 2**31 - 1  # positions, for a window
RESULTS = ("q", "keys", "values")  # whose types those of the results are


def heads_refusal(heads: Heads) -> str | None:
    """Why an attention has no kernel, or None."""
    if heads.width % 4 or heads.width > WIDEST:
        return f"a head is not a multiple of 4 wide, or wider than {WIDEST}"
    return None


def attention_refusal(attention: AttentionFormat) -> str | None:
    """Why an attention has no kernel of its own, or None."""
    return heads_refusal(attention.heads)


def attention_kernels(attention: AttentionFormat, code: Compiled) -> KernelCode:
    """The private function `(q, k, v, cos, sin, position, keys, values) -> out, keys, values`.

    q, k, v: not rotated yet; the caches are written in place
    """
    made, shapes = Dispatches(code), attention.activations()
    given = {key: (f"%arg_{key}", tensor_type(*of)) for key, of in shapes.items()}
    found = attended(made, attention.heads, attention.tokens, given)
    arguments = [f"{value}: {kind}" for value, kind in given.values()]
    results = [(value, given[key][1]) for key, value in zip(RESULTS, found, strict=True)]
    function = made.build.function_of(attention.function, arguments, results)
    return KernelCode(attention.function, function, made.executables)


def attended(
    made: Dispatches, heads: Heads, tokens: int, given: Mapping[str, Typed]
) -> tuple[str, str, str]:
    """The mixed values, like `q`, and both caches with the new tokens.

    given: values and types by the names of `AttentionFormat.activations`
    """
    names = ("k", "v", "cos", "sin", "position", "keys", "values")
    keys, values = made.in_place(
        CACHE,
        (heads.kv_heads, tokens),
        [given[name] for name in names],
        [given["keys"][0], given["values"][0]],
        (heads.kv_heads, heads.width, heads.cache_length),
    )
    cached = [(keys, given["keys"][1]), (values, given["values"][1])]
    queries = QUERIES[0] if tokens == 1 else QUERIES[1]
    found = made.dispatch(
        ATTENTION[queries].name,
        (heads.heads, -(-tokens // queries)),
        [*(given[name] for name in ("q", "cos", "sin", "position")), *cached],
        given["q"][1],
        (
            tokens,
            heads.heads,
            heads.heads // heads.kv_heads,
            heads.cache_length,
            heads.width,
            heads.window or ALL,
            bits_of(heads.scaling),
        ),
    )
    return found, keys, values
