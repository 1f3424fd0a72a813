"""Attention of many tokens against softmax in float64, and what it leaves in the caches."""

from functools import partial

import pytest

from tests.lowering.kernels import arm
from tests.lowering.kernels.decoders import Load, check_attention
from trinity.lowering.kernels.cpu.flash import attention_kernels, attention_refusal
from trinity.lowering.kernels.cpu.flavour import host_instructions
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Instructions
from trinity.lowering.kernels.decoder_parts import AttentionFormat, Heads
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets
from trinity.methods.formats import CacheFormat

CPU = targets.get("llvm-cpu")


def here(text: str) -> Loaded:
    """On this machine."""
    return Loaded(compile_text(text, CPU), CPU)


def check(
    attention: AttentionFormat, start: int, instructions: Instructions, load: Load = here
) -> None:
    """Compare with float64.  start: the first position"""
    assert attention_refusal(attention) is None
    check_attention(attention, start, attention_kernels(attention, instructions), load)


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "width", "longest", "start", "window"),
    [
        (128, 3, 1, 64, 256, 0, None),
        (32, 4, 2, 128, 128, 70, 7),  # blocks that the window hides from some lanes, or from all
        (48, 2, 2, 64, 192, 0, 65),  # tiles of 16
        (16, 2, 1, 32, 64, 3, None),
        (64, 2, 1, 32, 192, 100, None),  # blocks that start before and end behind what there is
        (64, 2, 1, 32, 128, 64, 500),  # a window longer than the cache, whose end is reached
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
    sizes = Heads(heads, kv_heads, width, longest, window, width**-0.5)
    check(AttentionFormat(sizes, tokens), start, host_instructions())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "width", "longest", "start", "window"),
    [(32, 4, 2, 128, 128, 70, 7), (48, 2, 2, 64, 192, 0, None), (16, 2, 1, 32, 64, 3, None)],
)
def test_attention_reads_codes_as_the_numbers_that_they_are(
    bits: int,
    tokens: int,
    heads: int,
    kv_heads: int,
    width: int,
    longest: int,
    start: int,
    window: int | None,
) -> None:
    sizes = Heads(heads, kv_heads, width, longest, window, width**-0.5, CacheFormat(bits))
    check(AttentionFormat(sizes, tokens), start, host_instructions())


def test_attention_runs_on_an_emulated_arm_processor() -> None:
    arm.require()
    attention, flavour = AttentionFormat(Heads(2, 1, 64, 192, 65, 0.125), 48), "neon-dot"
    load = partial(arm.loaded, flavour=flavour, driver="local-task")
    check(attention, 30, INSTRUCTIONS[flavour], load)


@pytest.mark.parametrize(
    ("sizes", "tokens", "reason"),
    [
        (Heads(2, 1, 48, 64, None, 1.0), 16, "a head is not a multiple of 32 wide"),
        (Heads(2, 1, 32, 64, None, 1.0), 8, "tokens are not a multiple of 16"),
        (Heads(2, 1, 32, 96, None, 1.0), 32, "the cache of 64 positions"),
    ],
)
def test_what_it_does_not_take_is_said(sizes: Heads, tokens: int, reason: str) -> None:
    assert reason in str(attention_refusal(AttentionFormat(sizes, tokens)))
