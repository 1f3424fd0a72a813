"""Attention of many tokens on a Vulkan device against softmax in float64."""

import pytest

from tests.lowering.kernels.decoders import check_attention
from tests.lowering.kernels.vulkan.device import loaded, require_device
from trinity.lowering.kernels.decoder_parts import AttentionFormat, Heads
from trinity.lowering.kernels.vulkan.attention import attention_kernels


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "width", "longest", "start", "window"),
    [
        (67, 3, 1, 64, 150, 0, None),  # a workgroup that is not full; blocks of keys that are not
        (32, 4, 2, 128, 128, 70, 7),  # blocks that the window hides from some queries
        (5, 2, 1, 36, 64, 3, None),  # a width that is no whole number of lanes
        (30, 2, 1, 32, 192, 100, 65),
        (16, 2, 2, 256, 40, 24, 500),  # a window longer than the cache, whose end is reached
    ],
)
def test_attention_is_softmax_in_float64(
    tokens: int,
    heads: int,
    kv_heads: int,
    width: int,
    longest: int,
    start: int,
    window: int | None,
) -> None:
    require_device()
    sizes = Heads(heads, kv_heads, width, longest, window, width**-0.5)
    attention = AttentionFormat(sizes, tokens)
    check_attention(attention, start, attention_kernels(attention), loaded)
