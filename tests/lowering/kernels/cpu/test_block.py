"""Kernels of whole decoder blocks against the library's own block in float64."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.lowering.kernels import arm
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
from tests.lowering.kernels.portable import compiled
from trinity.lowering.kernels.calls import KernelCode
from trinity.lowering.kernels.cpu.block import block_kernels, block_refusal
from trinity.lowering.kernels.cpu.flavour import host_instructions
from trinity.lowering.kernels.cpu.instructions import INSTRUCTIONS, Flavour
from trinity.lowering.kernels.decoder_parts import BlockFormat, Heads
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.targets import targets
from trinity.lowering.targets.targets import Target
from trinity.methods.formats import (
    CacheFormat,
    CompressedWeight,
    InputFormat,
    format_of,
)

CPU = targets.get("llvm-cpu")
# Each format with one flavour that has dot products and each kind of entry without; that a format's
# product is right in every flavour is tested of the same text in `test_flavours.py` and
# `test_product.py`.
FORMATS: list[tuple[Flavour, str, str | None, int]] = [
    ("avx512-vnni", "int4 group 32", "2:4", 5),
    ("avx512-vnni", "int8 tensor", "50%", 0),
    ("avx512-vnni", "int2 group 16", None, 3),
    ("avx512-vnni", "float16", "50%", 3),
    ("avx512-vnni", "nested 3 group 16", None, 0),
    ("avx2", "int4 group 32", None, 0),
    ("avx2", "int4 group 32", "2:4", 5),
    ("avx2", "int3 group 32 asymmetric", None, 0),
    ("avx2", "bfloat16", None, 7),
    ("avx2", "nested 3 group 16", None, 3),
    ("plain", "int4 group 32", "2:4", 5),
    ("plain", "int8 tensor", "50%", 0),
    ("plain", "int2 group 16", None, 3),
    ("plain", "float16", "50%", 3),
]


@pytest.fixture(params=["avx512-vnni", "avx2", "plain"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    found: Flavour = request.param
    return found


def here(text: str, flavour: Flavour, target: Target = CPU) -> Loaded:
    """On this machine, what it lacks written out."""
    return Loaded(compiled(text, flavour, CPU), target)


def case_of(
    weights: dict[str, CompressedWeight],
    flavour: Flavour,
    window: int | None = None,
    inputs: InputFormat | None = None,
    load: Callable[[str, Flavour], Loaded | arm.Emulated] = here,
    kept: CacheFormat | None = None,
) -> Case:
    """A block whose kernel is of a flavour."""
    made = INSTRUCTIONS[flavour]

    def kernels(block: BlockFormat) -> KernelCode:
        assert block_refusal(block, made) is None
        return block_kernels(block, made)

    return Case(weights, kernels, made.panels, partial(load, flavour=flavour), window, inputs, kept)


@pytest.mark.parametrize(("flavour", "kind", "pattern", "rank"), FORMATS)
def test_a_block_is_the_librarys_in_float64(
    make_weight: Make, flavour: Flavour, kind: str, pattern: str | None, rank: int
) -> None:
    case = case_of(weights_of(make_weight, kind, pattern, rank), flavour)
    # Nothing cached; vectors of scores that are not full, full, and one more; the last place.
    assert max(case.error(position) for position in (0, 1, 15, 16, 17, LONGEST - 1)) < 1e-5


# Attention's text is the same in every flavour.
@pytest.mark.parametrize(("flavour", "window"), [("avx512-vnni", 1), ("avx2", 7), ("plain", 64)])
def test_a_window_hides_what_is_before_it(make_weight: Make, flavour: Flavour, window: int) -> None:
    case = case_of(weights_of(make_weight, "int8 channel"), flavour, window)
    assert max(case.error(position) for position in (0, 6, 7, 30)) < 1e-5


@pytest.mark.parametrize(
    ("flavour", "bits", "window"),
    [("avx512-vnni", 8, None), ("avx2", 4, None), ("plain", 8, 7), ("avx512-vnni", 4, 7)],
)
def test_a_block_reads_and_writes_codes(
    make_weight: Make, flavour: Flavour, bits: int, window: int | None
) -> None:
    weights = weights_of(make_weight, "int8 channel")
    case = case_of(weights, flavour, window, kept=CacheFormat(bits))
    # Nothing cached; vectors of scales that are not full, full, and one more; the last place.
    assert max(case.error(position) for position in (0, 1, 15, 16, 17, LONGEST - 1)) < 1e-5


def test_formats_may_differ_within_a_block(make_weight: Make, flavour: Flavour) -> None:
    weights = weights_of(make_weight, "int4 group 32", "2:4", 5)
    weights["self_attn.k_proj"] = scaled(make_weight(SHAPES["k_proj"], "bfloat16"))
    weights["mlp.up_proj"] = scaled(make_weight(SHAPES["up_proj"], "int8 tensor", None, 3))
    assert case_of(weights, flavour).error(9) < 1e-5


def test_outliers_are_part_of_their_linear(make_weight: Make, flavour: Flavour) -> None:
    weights = weights_of(make_weight, "int4 group 32", None, 0, torch.float32, 3)
    weights["mlp.up_proj"] = scaled(
        make_weight(SHAPES["up_proj"], "int4 group 32", "2:4", 3, torch.float32, 2)
    )
    assert case_of(weights, flavour).error(9) < 1e-5


def test_outliers_and_rounded_inputs_are_refused(make_weight: Make) -> None:
    weights = weights_of(make_weight, "int4 group 32", None, 0, torch.float32, 3)
    rounding = InputFormat("int8", 32)
    formats = {n: replace(format_of(w), inputs=rounding) for n, w in weights.items()}
    heads = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, None, WIDTH**-0.5)
    found = block_refusal(BlockFormat(HIDDEN, heads, 1e-6, formats), INSTRUCTIONS["avx2"])
    assert "its outliers are multiplied as floats" in str(found)


def test_turned_inputs_are_refused(make_weight: Make) -> None:
    turned = InputFormat("int8", 32, turned=32)
    weights = weights_of(make_weight, "int4 group 32")
    formats = {n: replace(format_of(w), inputs=turned) for n, w in weights.items()}
    heads = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, None, WIDTH**-0.5)
    found = block_refusal(BlockFormat(HIDDEN, heads, 1e-6, formats), INSTRUCTIONS["avx2"])
    assert "its inputs are turned" in str(found)


def test_scaled_inputs_are_scaled_for_their_linear_only(
    make_weight: Make, flavour: Flavour
) -> None:
    weights = weights_of(make_weight, "int4 group 32")
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        scale = (torch.rand(SHAPES[name.split(".")[1]][1]) + 0.5).half()
        weights[name] = replace(weights[name], input_scale=scale)
    assert case_of(weights, flavour).error(9) < 1e-5


def test_inputs_declared_of_8_bits_are_rounded(make_weight: Make) -> None:
    case = case_of(weights_of(make_weight, "int4 group 32"), "avx2", inputs=InputFormat("int8", 32))
    # The last bit of a float decides which of two codes an input gets; a wrong formula is far off.
    assert case.error(9) < 5e-3


def test_all_phases_end_when_one_worker_is_all_there_is(make_weight: Make) -> None:
    weights = weights_of(make_weight, "int4 group 32", "2:4", 5)
    alone = partial(here, target=replace(CPU, driver="local-sync"))
    assert case_of(weights, host_instructions().flavour, load=alone).error(17) < 1e-5


def test_a_block_runs_on_an_emulated_arm_processor(make_weight: Make) -> None:
    arm.require()
    weights = weights_of(make_weight, "int4 group 32", "2:4", 5)
    case = case_of(weights, "neon-i8mm", load=partial(arm.loaded, driver="local-task"))
    assert max(case.error(position) for position in (0, 17)) < 1e-5


@pytest.mark.parametrize(
    ("name", "kind", "pattern", "rank", "reason"),
    [
        ("mlp.up_proj", "int4 group 12", None, 0, "its inputs are padded"),
        ("mlp.down_proj", "int4 channel", None, 0, None),
    ],
)
def test_what_a_block_does_not_take_is_said(
    make_weight: Make, name: str, kind: str, pattern: str | None, rank: int, reason: str | None
) -> None:
    weights = weights_of(make_weight, "int4 group 32")
    weights[name] = make_weight(SHAPES[name.split(".")[1]], kind, pattern, rank)
    formats = {key: format_of(weight) for key, weight in weights.items()}
    heads = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, None, WIDTH**-0.5)
    found = block_refusal(BlockFormat(HIDDEN, heads, 1e-6, formats), INSTRUCTIONS["plain"])
    assert found == (f"{name}: {reason}" if reason else None)


def test_heads_of_16_are_refused(make_weight: Make) -> None:
    formats = {n: format_of(w) for n, w in weights_of(make_weight, "int4 group 32").items()}
    block = BlockFormat(HIDDEN, Heads(6, 2, 16, LONGEST, None, 0.25), 1e-6, formats)
    assert "a head is not a multiple of 32 wide" in str(block_refusal(block, INSTRUCTIONS["plain"]))


def test_equal_blocks_have_one_function_and_others_another(make_weight: Make) -> None:
    formats = {n: format_of(w) for n, w in weights_of(make_weight, "int4 group 32").items()}
    heads = Heads(HEADS, KV_HEADS, WIDTH, LONGEST, None, WIDTH**-0.5)
    block = BlockFormat(HIDDEN, heads, 1e-6, formats)
    assert replace(block, linears=dict(formats)).function == block.function
    others = [replace(block, epsilon=1e-5), replace(block, heads=replace(heads, window=3))]
    assert len({block.function, *(other.function for other in others)}) == 3
