"""Attention of some tokens as shaders: keys and values to the caches, then softmax over them."""

from collections.abc import Mapping

from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.decoder_calls import ALL, Typed, attention_function, bits_of
from trinity.lowering.kernels.decoder_parts import AttentionFormat, Heads
from trinity.lowering.kernels.vulkan.dispatches import Dispatches
from trinity.lowering.kernels.vulkan.executable import Shader, Workgroup

LANES = 128  # the most that every device has in a workgroup
QUERIES = 4  # of a workgroup, where there are many


def attention_kernels(attention: AttentionFormat) -> KernelCode:
    """The function of `attention_function`."""
    made, heads, tokens = Dispatches(), attention.heads, attention.tokens
    function = attention_function(
        made.build, attention, lambda given: attended(made, heads, tokens, given)
    )
    return KernelCode(attention.function, function, made.executables)


def attended(
    made: Dispatches, heads: Heads, tokens: int, given: Mapping[str, Typed]
) -> tuple[str, str, str]:
    """The mixed values, like `q`, and both caches with the new tokens.

    given: values and types by the names of `AttentionFormat.activations`
    """
    width, places, lanes = heads.width, heads.cache_length, min(heads.width, LANES)
    names = ("k", "v", "cos", "sin", "position", "keys", "values")
    keys, values = made.in_place(
        Shader("cache", Workgroup(lanes), 1, (), 3, 5, 2),
        (heads.kv_heads, tokens),
        [given[name] for name in names],
        [given["keys"][0], given["values"][0]],
        (heads.kv_heads, width, places),
    )
    cached = [(keys, given["keys"][1]), (values, given["values"][1])]
    queries = 1 if tokens == 1 else QUERIES
    found = made.dispatch(
        Shader("attention", Workgroup(lanes, tokens=queries), queries, (width,), 6, 6, 1),
        (heads.heads, tokens),
        [*(given[name] for name in ("q", "cos", "sin", "position")), *cached],
        given["q"][1],
        (
            tokens,
            heads.heads,
            heads.heads // heads.kv_heads,
            places,
            heads.window or ALL,
            bits_of(heads.scaling),
        ),
    )
    return found, keys, values
