"""Attention of some tokens: keys and values to the caches, then softmax over them."""

from collections.abc import Mapping

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.decoder_calls import ALL, Typed, attention_function, bits_of
from trinity.lowering.kernels.decoder_parts import AttentionFormat, Heads
from trinity.lowering.kernels.lanes.decoder import ATTENTION, CACHE, IN_DIGITS, QUERIES
from trinity.lowering.kernels.lanes.dispatches import Dispatches
from trinity.lowering.kernels.lanes.executable import Compiled


def attention_kernels(attention: AttentionFormat, code: Compiled) -> KernelCode:
    """The function of `attention_function`."""
    made, heads, tokens = Dispatches(code), attention.heads, attention.tokens
    function = attention_function(
        made.build, attention, lambda given: attended(made, heads, tokens, given, given["q"][1])
    )
    return KernelCode(attention.function, function, made.executables)


def attended(
    made: Dispatches, heads: Heads, tokens: int, given: Mapping[str, Typed], kind: str
) -> tuple[str, str, str]:
    """The mixed values, and both caches with the new tokens.

    given: values and types by the names of `AttentionFormat.activations`
    kind: of the mixed values, that of `q`, or of one token in digits
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
    entry = ATTENTION[queries]
    found = made.dispatch(
        (entry if kind == given["q"][1] else IN_DIGITS[entry.name]).name,
        (heads.heads, -(-tokens // queries)),
        [*(given[name] for name in ("q", "cos", "sin", "position")), *cached],
        kind,
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
