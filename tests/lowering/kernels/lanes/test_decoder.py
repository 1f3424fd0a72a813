"""Blocks and attention of one source for two makers' GPUs, run on the CPU, against float64."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch

from tests.lowering.kernels.cuda import emulated as tensor_cores
from tests.lowering.kernels.decoders import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    LONGEST,
    WIDTH,
    Case,
    Make,
    check_attention,
    weights_of,
)
from tests.lowering.kernels.lanes import emulated
from tests.lowering.kernels.lanes.interpreted import Interpreted
from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.cuda import kernels as cuda
from trinity.lowering.kernels.cuda.code import CODE
from trinity.lowering.kernels.decoder_parts import AttentionFormat, BlockFormat, Heads
from trinity.lowering.kernels.lanes.attention import attention_kernels
from trinity.lowering.kernels.lanes.block import LANE_LINEARS, block_kernels, block_refusal
from trinity.lowering.kernels.lanes.executable import Compiled
from trinity.lowering.kernels.rocm.kernels import RocmKernels
from trinity.lowering.kernels.strips import Strips
from trinity.lowering.module.check import relative_error
from trinity.methods.formats import format_of

SIZES = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, None, WIDTH**-0.5)
Load = Callable[[str], Interpreted]


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    if shutil.which("g++") is None:
        pytest.skip("no g++, which compiles the sources for this processor")
    programs = {
        "lanes": emulated.compiled(tmp_path_factory),
        "decoder": emulated.compiled(tmp_path_factory, "run_decoder"),
        "product": tensor_cores.compiled(tmp_path_factory),
    }
    return lambda text: Interpreted(text, programs)


@pytest.fixture(scope="session")
def code() -> Compiled:
    return RocmKernels("gfx942").code


def blocks(code: Compiled) -> Callable[[BlockFormat], KernelCode]:
    return lambda block: block_kernels(block, code, LANE_LINEARS)


@pytest.mark.parametrize(
    ("kind", "pattern", "rank", "window", "positions"),
    [
        ("int4 group 32", "2:4", 32, None, (0, 17, LONGEST - 1)),
        ("float16", "50%", 0, 7, (0, 6, 7, 30)),
    ],
)
def test_a_block_is_the_librarys_in_float64(
    make_weight: Make,
    load: Load,
    code: Compiled,
    kind: str,
    pattern: str | None,
    rank: int,
    window: int | None,
    positions: tuple[int, ...],
) -> None:
    weights = weights_of(make_weight, kind, pattern, rank)
    case = Case(weights, blocks(code), Strips, load, window)  # type: ignore[arg-type]
    assert max(case.error(position) for position in positions) < 1e-5


def test_a_block_is_twelve_launches(make_weight: Make, code: Compiled) -> None:
    formats = {n: format_of(w) for n, w in weights_of(make_weight, "int4 group 32").items()}
    kernels = blocks(code)(BlockFormat(HIDDEN, SIZES, 1e-6, formats))
    assert kernels.function.count("flow.dispatch") == 12


TILES, STRIPS = ("int4 group 32",), ("int3 group 32",)
BY_INPUT = ("qkv", "o", "gate up", "down")  # linears that share an input


@pytest.mark.parametrize(
    ("kinds", "launches"),
    [
        ([("int4 group 32", "2:4", 32)] * 4, 20),  # an adapter's launch for each linear
        ([("float16",)] * 4, 13),
        # Strips take floats and add by themselves, tiles take digits: each behind the other.
        ([TILES, STRIPS, TILES, STRIPS], 12),
        ([STRIPS, TILES, STRIPS, TILES], 14),
    ],
)
def test_a_block_of_tiles_is_the_librarys_in_float64(
    make_weight: Make, load: Load, kinds: list[tuple[object, ...]], launches: int
) -> None:
    """kinds: of the linears of each input, none of which is padded"""
    weights = {}
    for shared, kind in zip(BY_INPUT, kinds, strict=True):
        made = weights_of(make_weight, *kind)
        names = [f"{of}_proj" for of in (shared if shared == "qkv" else shared.split())]
        weights |= {name: of for name, of in made.items() if name.split(".")[1] in names}
    case = Case(weights, tensor_core_blocks, cuda.storage, load)  # type: ignore[arg-type]
    assert max(case.error(position) for position in (0, 17)) < 1e-5
    assert tensor_core_blocks(case.block).function.count("flow.dispatch") == launches


def tensor_core_blocks(block: BlockFormat) -> KernelCode:
    return block_kernels(block, CODE, cuda.LINEARS)


@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "width", "longest", "start", "window"),
    [
        (67, 3, 1, 64, 150, 0, None),  # queries that do not fill a block of threads
        (9, 4, 2, 128, 600, 550, 300),  # blocks of keys that the window hides from some queries
        (5, 2, 1, 36, 64, 3, None),  # a width of which no whole number makes a block of threads
        (6, 2, 2, 256, 40, 34, 500),  # a window longer than the cache, whose end is reached
        (1, 6, 2, 20, 700, 699, None),  # one token, some blocks of keys
        (1, 2, 1, 4, 300, 290, 5),
    ],
)
def test_attention_is_softmax_in_float64(
    load: Load,
    code: Compiled,
    tokens: int,
    heads: int,
    kv_heads: int,
    width: int,
    longest: int,
    start: int,
    window: int | None,
) -> None:
    sizes = Heads(heads, kv_heads, width, longest, window, width**-0.5)
    attention = AttentionFormat(sizes, tokens)
    kernels = attention_kernels(attention, code)
    check_attention(attention, start, kernels, load)  # type: ignore[arg-type]


@pytest.mark.parametrize("entry", ["add", "gate"])
@pytest.mark.parametrize("size", [1, 256, 700])
def test_elements_are_added_and_gated(load: Load, entry: str, size: int) -> None:
    a, b = torch.randn(2, 1, size) * 40
    expected = a.double() + b if entry == "add" else torch.nn.functional.silu(a.double()) * b
    found = torch.full((1, size), float("nan"))
    module = load("")
    module._run(f"decoder_{entry}", (-(-size // 256), 1), (size,), [a, b, found], 1)
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"heads": replace(SIZES, width=34)}, "a head is not a multiple of 4 wide"),
        ({"heads": replace(SIZES, width=512)}, "or wider than 256"),
    ],
)
def test_what_a_block_does_not_take_is_said(
    make_weight: Make, change: Mapping[str, object], reason: str
) -> None:
    formats = {n: format_of(w) for n, w in weights_of(make_weight, "int4 group 32").items()}
    block = replace(BlockFormat(HIDDEN, SIZES, 1e-6, formats), **change)  # type: ignore[arg-type]
    assert reason in str(block_refusal(block, LANE_LINEARS))
