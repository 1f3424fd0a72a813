"""Linears and models for `cuda`: modules that hold our kernels, and inputs in their order."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.lowering.kernels.cuda.emulated import activations
from trinity.lowering import lower
from trinity.lowering.kernels.cuda import linear
from trinity.lowering.kernels.cuda.device import CUDA_CODE, OBJECTS
from trinity.lowering.kernels.cuda.launch import launches
from trinity.lowering.kernels.cuda.tiles import Tiles
from trinity.lowering.kernels.lanes.decoder import DECODER, DIGITS_DECODER
from trinity.lowering.module import check
from trinity.lowering.module.compile import compile_text
from trinity.lowering.module.invoke import Loaded
from trinity.lowering.plan import Lowering
from trinity.lowering.targets import targets
from trinity.methods.formats import (
    CompressedWeight,
    InputFormat,
    Quantized,
    WeightFormat,
    format_of,
    parse_pattern,
)

Make = Callable[..., CompressedWeight]
CUDA, CPU = targets.get("cuda"), targets.get("llvm-cpu")
CPU_FREE = replace(CPU, flags=())  # whose device the flags of a test may choose
ENTRY = re.compile(rb"\.entry (product_f\d+_\d|lanes_\d+_\d_\d|decoder_\w+)\(")
FORMATS = [
    ("float16", None, 3),
    ("int4 group 16", None, 0),
    ("int4 channel asymmetric", None, 0),
    ("int4 tensor", None, 3),
    ("int4 group 32", "2:4", 0),
    ("int4 channel asymmetric", "2:4", 17),
    ("int4 group 16", "1:2", 0),
    ("int4 group 16", "1:4", 0),
    ("int4 group 16", "50%", 0),
]


def entries(module: bytes) -> set[str]:
    """Kernels of ours in a compiled module."""
    return {name.decode() for name in ENTRY.findall(module)}


@pytest.mark.parametrize(("kind", "pattern", "rank"), FORMATS)
def test_a_linear_of_every_format_compiles_with_its_kernel(
    make_weight: Make, kind: str, pattern: str | None, rank: int
) -> None:
    weight_format = format_of(make_weight((40, 64), kind, pattern, rank, torch.float16))
    for rows, dtype, expected in [
        (1, "float32", "product_f32_1"),
        (20, "float16", "product_f16_4"),
    ]:
        module = compile_text(check.linear_text(weight_format, CUDA, rows, dtype), CUDA)
        assert entries(module) == {expected}


@pytest.mark.parametrize(
    ("kind", "pattern", "rank", "files"),
    [
        ("int2 channel", None, 0, ["2_0"]),
        ("int3 group 16 asymmetric", None, 3, ["3_0", "16_0"]),
        ("int8 channel", "2:4", 0, ["8_1"]),
        ("int8 channel", "50%", 0, ["8_2"]),
        ("float16", "2:4", 0, ["16_1"]),
        ("bfloat16", "50%", 0, ["17_2"]),
        ("float32", "1:4", 0, ["32_2"]),
        ("nf4 group 32", "2:4", 3, ["68_1", "16_0"]),
        ("rows of 3", None, 0, ["67_0"]),
    ],
)
def test_what_tiles_do_not_hold_compiles_with_the_kernels_an_output_a_lane(
    make_weight: Make, kind: str, pattern: str | None, rank: int, files: list[str]
) -> None:
    weight_format = format_of(make_weight((40, 64), kind, pattern, rank, torch.float16))
    text = check.linears_text(weight_format, CUDA, (1, 3), "float16")
    assert entries(compile_text(text, CUDA)) == {
        f"lanes_{name}_{tokens}" for name in files for tokens in (1, 8)
    }


def test_rounded_inputs_of_8_bits_compile_with_a_kernel(make_weight: Make) -> None:
    weight_format = format_of(make_weight((40, 64), "int4 channel", None, 0, torch.float16))
    weight_format = replace(weight_format, inputs=InputFormat("int8", 32))
    module = compile_text(check.linear_text(weight_format, CUDA, 1, "float16"), CUDA)
    assert entries(module) == {"lanes_4_0_1", "lanes_4_0_8"}


def test_scaled_inputs_are_multiplied_as_float32_in_a_float16_model(make_weight: Make) -> None:
    weight = make_weight((40, 64), "int4 tensor", None, 0, torch.float16)
    assert isinstance(weight, Quantized)
    weight_format = format_of(replace(weight, input_scale=torch.ones(64)))
    module = compile_text(check.linear_text(weight_format, CUDA, 1, "float16"), CUDA)
    assert entries(module) == {"product_f32_1"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("d_in", "kind"), [(96, "int4 channel"), (172, "int4 channel"), (60, "int4 group 20")]
)
def test_the_compiler_puts_inputs_in_the_order_of_operands(
    make_weight: Make, d_in: int, kind: str, dtype: str
) -> None:
    weight = make_weight((8, d_in), kind)
    x = torch.randn(5, d_in).to(getattr(torch, dtype)).float()
    (launch,) = launches(Tiles(format_of(weight)), len(x), dtype)
    expected = activations(launch.first, x, {}).view(torch.int16)
    build = linear.Builder()
    value, kind = linear.activations(build, launch.first, len(x))
    # Fetched as float32, so that any bits come back as they are.
    words = list(expected.view(torch.float32).shape)
    flat = build.collapse(value, [list(_shape(kind))], kind[-4:-1])
    pairs = build.expand(flat, (expected.numel(),), [[expected.numel() // 2, 2]], kind[-4:-1])
    as_float = f"tensor<{expected.numel() // 2}xf32>"
    result = build.value(
        f"iree_tensor_ext.bitcast {pairs} : "
        f"tensor<{expected.numel() // 2}x2x{kind[-4:-1]}> -> {as_float}"
    )
    text = build.function("order", [f"%arg_x: tensor<5x{d_in}xf32>"], result, as_float)
    module = Loaded(compile_text(f"module {{\n{text.replace('private ', '')}}}\n", CPU), CPU)
    found = module.fetch(module.call("order", [module.put(x)]))
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32).flatten())
    assert words[0] == Tiles(format_of(weight)).blocks


def _shape(kind: str) -> tuple[int, ...]:
    return tuple(int(size) for size in kind.removeprefix("tensor<").split("x")[:-1])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_decoder_of_two_blocks_compiles_with_the_kernels_it_uses_and_no_other(
    make_decoder: Callable[[str], nn.Module], make_packed_adapter: Make, dtype: str
) -> None:
    model = make_decoder("llama").to(getattr(torch, dtype))
    formats: dict[str, WeightFormat] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and ".layers." in name:
            shape = (layer.out_features, layer.in_features)
            formats[name] = _two_four(make_packed_adapter(shape, 8, "int4 group 16", *FACTORS))
    plan = Lowering(model.config, formats, CUDA, (1, 16), 32, dtype)
    assert plan.kernels
    lowered = lower.lower(model, plan)
    number = dtype.removeprefix("float")
    own = (*DECODER, *DIGITS_DECODER) if dtype == "float32" else ()
    between = {entry.name for entry in own}
    assert entries(lowered.vmfb) == {f"product_f{number}_1", f"product_f{number}_2"} | between
    assert lowered.meta["path"] == "kernel"
    stored = Tiles(formats["model.layers.1.mlp.down_proj"]).shapes()
    names = {f"model.layers.1.mlp.down_proj.{key}" for key in stored}
    assert names == {n for n in lowered.parameters if ".1.mlp.down_proj." in n}


FACTORS = ("int4 channel", "int4 group 16")


def _two_four(weight: CompressedWeight) -> WeightFormat:
    """The format with its base pruned 2:4."""
    return replace(format_of(weight), pattern=parse_pattern("2:4"))


def test_the_code_that_ptx_is_attached_to_is_the_compilers_own_description_of_sm_80() -> None:
    flags = ("--iree-hal-target-device=cuda", "--iree-cuda-target=sm_80", "--compile-to=flow")
    text = "func.func @f(%a: tensor<8xf32>) -> tensor<8xf32> { return %a : tensor<8xf32> }"
    assert CUDA_CODE in compile_text(text, CPU_FREE, flags).decode()


def test_a_format_without_kernel_is_compiled(make_weight: Make) -> None:
    weight_format = format_of(make_weight((40, 64), "float32"))
    assert entries(compile_text(check.linear_text(weight_format, CUDA, 1), CUDA)) == set()


def test_a_cache_key_holds_no_folder(make_decoder: Callable[[str], nn.Module]) -> None:
    plan = Lowering(make_decoder("llama").config, {}, CUDA, (1,), 32)
    assert str(OBJECTS) not in str(plan.fingerprint())
