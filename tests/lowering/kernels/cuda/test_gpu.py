"""CUDA kernels on a GPU: what the other tests of this folder look at without one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from trinity.lowering.lower import lower
from trinity.lowering.module import check, devices
from trinity.lowering.module.invoke import CompiledModel
from trinity.lowering.parameters import write_parameters
from trinity.lowering.plan import Lowering
from trinity.lowering.targets import targets
from trinity.methods.formats import CompressedWeight, InputFormat, format_of

Make = Callable[..., CompressedWeight]
CUDA = targets.get("cuda")


@pytest.fixture(autouse=True)
def _device() -> None:
    if not devices.available(CUDA):
        pytest.skip("no NVIDIA GPU with a working driver")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "pattern", "rank"),
    [
        ("int4 group 128", None, 0),
        ("int4 channel asymmetric", None, 20),
        ("int4 group 128", "2:4", 0),
        ("int4 tensor", "2:4", 64),
        ("float16", None, 0),
        ("int2 group 128", None, 0),
        ("int3 group 128 asymmetric", None, 20),
        ("int8 channel", None, 0),
        ("int8 group 128", "2:4", 0),
        ("int4 group 128", "50%", 0),
        ("int8 channel asymmetric", "50%", 0),
        ("float16", "50%", 20),
        ("bfloat16", "70%", 0),
        ("float32", "2:4", 0),
        ("float32", "1:4", 0),
        ("nf4 group 64", None, 20),
        ("nf4 group 64", "2:4", 0),
        ("nf4 group 64", "50%", 0),
        ("e2m1 group 32 e8m0", None, 0),
        ("e2m1 group 16 e4m3 outer", None, 0),
        ("e4m3 channel", None, 0),
        ("rows of 4", None, 0),
        ("rows of 3", None, 0),
    ],
)
def test_a_kernel_is_the_float64_product_of_its_weight(
    make_weight: Make, kind: str, pattern: str | None, rank: int, dtype: str
) -> None:
    weight = make_weight((1000, 2560), kind, pattern, rank, torch.float16)
    for rows in (1, 3, 16, 17, 64):
        assert (
            check.linear_error(weight, CUDA, rows, dtype)
            < check.LAYER_TOLERANCE[getattr(torch, dtype)]
        )


@pytest.mark.gpu
@pytest.mark.parametrize("group", [None, 128])
@pytest.mark.parametrize(
    ("kind", "pattern"), [("int4 channel", None), ("int8 channel", None), ("int4 channel", "2:4")]
)
def test_inputs_of_8_bits_are_rounded_as_torch_rounds_them(
    make_weight: Make, kind: str, pattern: str | None, group: int | None
) -> None:
    weight, inputs = make_weight((1000, 2560), kind, pattern), InputFormat("int8", group)
    for rows in (1, 3, 17):
        error = check.linear_error(weight, CUDA, rows, "float32", inputs)
        assert error < check.LAYER_TOLERANCE[torch.float32]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_decoder_equals_torch(
    make_decoder: Callable[[str], nn.Module],
    compress_block: Callable[..., dict[str, CompressedWeight]],
    tmp_path: Path,
    dtype: str,
) -> None:
    model = make_decoder("llama").to(getattr(torch, dtype))
    weights = compress_block(model, 0, "int4 group 16", "2:4", 3, torch.float16)
    weights |= compress_block(model, 1, "int4 channel asymmetric")
    formats = {name: format_of(weight) for name, weight in weights.items()}
    plan = Lowering(model.config, formats, CUDA, (1, 16), 32, dtype)
    lowered = lower(model, plan)
    lowered.save(tmp_path)
    path = tmp_path / "parameters.safetensors"
    write_parameters(path, model, weights, lowered.parameters, plan)
    ids = torch.randint(3, 64, (1, 21))
    assert check.verify(CompiledModel(tmp_path, path, CUDA), model, weights, ids)
