"""Blocks at one token on a Vulkan device against the library's own block in float64."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from tests.lowering.kernels.decoders import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    LONGEST,
    SHAPES,
    WIDTH,
    Case,
    Make,
    scaled,
    weights_of,
)
from tests.lowering.kernels.vulkan.device import loaded, require_device
from trinity.lowering.kernels.decoder_parts import BlockFormat, Heads
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.kernels.vulkan.block import block_kernels, block_refusal
from trinity.methods.formats import CompressedWeight, InputFormat, format_of

SIZES = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, None, WIDTH**-0.5)


def case_of(
    weights: dict[str, CompressedWeight],
    window: int | None = None,
    inputs: InputFormat | None = None,
) -> Case:
    require_device()
    return Case(weights, block_kernels, Strips, loaded, window, inputs)


@pytest.mark.parametrize(
    ("kind", "pattern", "rank"),
    [("int4 group 32", "2:4", 5), ("int3 group 16 asymmetric", None, 0), ("float16", "50%", 3)],
)
def test_a_block_is_the_librarys_in_float64(
    make_weight: Make, kind: str, pattern: str | None, rank: int
) -> None:
    case = case_of(weights_of(make_weight, kind, pattern, rank))
    assert max(case.error(position) for position in (0, 1, 17, LONGEST - 1)) < 1e-5


def test_a_window_hides_what_is_before_it(make_weight: Make) -> None:
    case = case_of(weights_of(make_weight, "int4 group 32"), 7)
    assert max(case.error(position) for position in (0, 6, 7, 30)) < 1e-5


def test_formats_may_differ_and_inputs_be_scaled_within_a_block(make_weight: Make) -> None:
    weights = weights_of(make_weight, "int4 group 32")
    weights["self_attn.k_proj"] = scaled(make_weight(SHAPES["k_proj"], "bfloat16"))
    scale = (torch.rand(HIDDEN) + 0.5).half()
    weights["self_attn.q_proj"] = replace(weights["self_attn.q_proj"], input_scale=scale)
    assert case_of(weights).error(9) < 1e-5


def test_inputs_declared_of_8_bits_are_rounded(make_weight: Make) -> None:
    case = case_of(weights_of(make_weight, "int4 group 32"), inputs=InputFormat("int8", 32))
    # The last bit of a float decides which of two codes an input gets; a wrong formula is far off.
    assert case.error(9) < 5e-3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden": 94}, "it is not a multiple of 4 wide"),
        ({"heads": replace(SIZES, width=34)}, "a head is not a multiple of 4 wide"),
        ({"heads": replace(SIZES, width=512)}, "or wider than 256"),
    ],
)
def test_what_a_block_does_not_take_is_said(
    make_weight: Make, change: Mapping[str, object], reason: str
) -> None:
    formats = {n: format_of(w) for n, w in weights_of(make_weight, "int4 group 32").items()}
    block = replace(BlockFormat(HIDDEN, SIZES, 1e-6, formats), **change)  # type: ignore[arg-type]
    assert reason in str(block_refusal(block))
