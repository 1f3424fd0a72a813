"""Attention of many tokens against softmax in float64, and what it leaves in the caches."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.lowering.kernels import arm
from trinity.lowering.kernels.calls import with_kernels
from trinity.lowering.kernels.cpu.flash import attention_kernels, attention_refusal
from trinity.lowering.kernels.cpu.flavour import host_instructions
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Instructions
from trinity.lowering.kernels.decoder_parts import AttentionFormat, Heads
from trinity.lowering.module.check import relative_error
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets

CPU = targets.get("llvm-cpu")


def turned(x: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys [1, T, heads width] with their rotation.  -> [1, heads, T, width], float64"""
    rows = x.double().view(1, x.shape[1], heads, -1).transpose(1, 2)
    low, high = rows.chunk(2, dim=-1)
    return rows * cos.double() + torch.cat([-high, low], -1) * sin.double()


def here(text: str) -> Loaded:
    """On this machine."""
    return Loaded(compile_text(text, CPU), CPU)


def check(
    attention: AttentionFormat,
    start: int,
    instructions: Instructions,
    load: Callable[[str], Loaded | arm.Emulated] = here,
) -> None:
    """Compare a kernel's result and caches with float64.  start: the first position"""
    torch.manual_seed(0)
    assert attention_refusal(attention) is None
    kernels = attention_kernels(attention, instructions)
    text = with_kernels("module {\n}\n", [kernels]).replace("func.func private", "func.func")
    sizes, tokens = attention.heads, attention.tokens
    heads, kv_heads, width, longest = sizes.heads, sizes.kv_heads, sizes.width, sizes.cache_length

    q = torch.randn(1, tokens, heads * width) * 3
    k, v = torch.randn(2, 1, tokens, kv_heads * width)
    positions = torch.arange(start, start + tokens)
    angles = positions[:, None] * torch.rand(width // 2)
    cos, sin = (
        f(torch.cat([angles, angles], 1))[None].contiguous() for f in (torch.cos, torch.sin)
    )
    keys, values = torch.randn(2, 1, kv_heads, longest, width)
    arguments = [q, k, v, cos, sin, positions, keys.clone(), values.clone()]
    found, *caches = arm.with_caches(load(text), attention.function, arguments, 6)

    keys[:, :, start : start + tokens] = turned(k, kv_heads, cos, sin).float()
    values[:, :, start : start + tokens] = v.view(1, tokens, kv_heads, width).transpose(1, 2)
    assert relative_error(caches[0], keys) < 1e-6
    assert torch.equal(caches[1], values)
    distance = positions[:, None] - torch.arange(longest)
    seen = (distance >= 0) & (distance < (sizes.window or longest))
    shared = heads // kv_heads
    all_keys = keys.double().repeat_interleave(shared, 1)
    scores = turned(q, heads, cos, sin) @ all_keys.transpose(2, 3) * width**-0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    expected = weights @ values.double().repeat_interleave(shared, 1)
    assert relative_error(found, expected.transpose(1, 2).reshape(found.shape)) < 2e-6


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
