"""Strip storage: exact both ways, as small as it says, in tensors that a Vulkan buffer holds."""

from collections.abc import Callable
from math import prod

import pytest
import torch

from tests.lowering.conftest import random_weight
from trinity.lowering.kernels import strip_geometry
from trinity.lowering.kernels.strips import Strips, refusal
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, format_of

Make = Callable[..., CompressedWeight]

Held = tuple[tuple[int, int], str, str | None, int, int]
# Shape, kind, pattern, rank and outliers.
HELD: list[Held] = [
    ((5, 7), "float32", None, 0, 0),
    ((5, 7), "float16", None, 3, 0),
    ((40, 100), "bfloat16", "2:4", 3, 0),
    ((33, 72), "float32", "2:4", 0, 0),
    ((33, 72), "float16", "1:4", 0, 0),
    ((33, 72), "float16", "4:8", 0, 0),
    ((70, 264), "bfloat16", "50%", 3, 0),
    ((70, 264), "float32", "70%", 0, 0),
    ((70, 264), "int8 channel asymmetric", "50%", 0, 0),
    ((5, 7), "int4 tensor", None, 0, 0),
    ((5, 7), "int2 channel asymmetric", None, 3, 0),
    ((70, 172), "int3 group 43", None, 20, 0),
    ((70, 320), "int3 group 64 asymmetric", "2:4", 0, 0),
    ((130, 256), "int4 group 64 asymmetric", "2:4", 5, 0),
    ((33, 128), "int4 group 16", "1:4", 0, 0),
    ((30, 66), "int8 group 22 asymmetric", "1:2", 0, 0),
    ((30, 96), "int8 group 32", None, 0, 0),
    ((30, 64), "int4 group 16", "50%", 3, 0),
    ((40, 112), "int4 group 16 asymmetric", "2:4", 0, 0),
    ((33, 144), "int3 group 48 asymmetric", None, 0, 0),
    ((70, 128), "nf4 group 64", None, 5, 0),
    ((5, 7), "nf4 tensor", None, 0, 0),
    ((40, 128), "nf4 group 64", "2:4", 0, 0),
    ((40, 96), "nf4 group 32", "50%", 0, 0),
    ((33, 64), "e2m1 group 32 e8m0", None, 0, 0),
    ((33, 48), "e2m1 group 16 e4m3 outer", None, 3, 0),
    ((33, 40), "e2m1 group 8 e4m3", "1:4", 0, 0),
    ((40, 100), "e4m3 channel", None, 0, 0),
    ((40, 96), "e4m3 tensor outer", "50%", 0, 0),
    ((33, 70), "rows of 4", None, 0, 0),
    ((5, 37), "rows of 2", None, 3, 0),
    ((40, 96), "rows of 3", None, 0, 2),
    ((33, 150), "int4 group 50", None, 3, 7),
    ((40, 100), "float16", "50%", 0, 1),
]


@pytest.fixture(params=HELD, ids=lambda held: " ".join(map(str, held)))
def weight(request: pytest.FixtureRequest) -> CompressedWeight:
    shape, kind, pattern, rank, outliers = request.param
    torch.manual_seed(1)
    return random_weight(shape, kind, pattern, rank, torch.float16, outliers)


def test_unpack_inverts_pack_exactly(weight: CompressedWeight) -> None:
    strips = Strips(format_of(weight))
    stored = strips.pack(weight)
    again = strips.unpack(stored)
    assert format_of(again) == format_of(weight)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert all(torch.equal(tensor, stored[key]) for key, tensor in strips.pack(again).items())


def test_shapes_and_bits_are_those_of_the_stored_tensors(weight: CompressedWeight) -> None:
    strips = Strips(format_of(weight))
    stored = strips.pack(weight)
    made = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in stored.items()}
    assert made == strips.shapes()
    assert strips.bits() == 8 * sum(t.nbytes for t in stored.values()) / prod(weight.shape)
    own = [tensor for key, tensor in stored.items() if key.endswith("strips")]
    assert all(tensor.nbytes % 16 == 0 for tensor in own)  # a range ends at its tensor


@pytest.mark.parametrize(
    ("kind", "pattern", "bits"),
    [
        ("int2 group 128", None, 2),
        ("int3 group 128", None, 3),
        ("int4 group 128", "2:4", 3),
        ("int8 group 128", "2:4", 5),
        ("int4 group 16", None, 4),
    ],
)
def test_codes_take_their_bits_and_their_scales(
    make_weight: Make, kind: str, pattern: str | None, bits: int
) -> None:
    weight = make_weight((128, 256), kind, pattern, 0, torch.float16)
    group = int(kind.split()[-1])
    assert Strips(format_of(weight)).bits() == bits + 16 / group


def test_a_weight_larger_than_a_buffer_is_several_tensors(
    make_weight: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = make_weight((130, 256), "int4 group 64 asymmetric", "2:4", 0, torch.float16)
    (whole,) = Strips(format_of(weight)).pack(weight).values()
    monkeypatch.setattr(strip_geometry, "LARGEST", whole.nbytes // 2)
    strips = Strips(format_of(weight))
    stored = strips.pack(weight)
    assert list(stored) == ["strips_0", "strips_1", "strips_2"]
    assert all(tensor.nbytes <= whole.nbytes // 2 for tensor in stored.values())
    assert sum(tensor.nbytes for tensor in stored.values()) == whole.nbytes
    assert torch.equal(strips.unpack(stored).dequantize(), weight.dequantize())


def test_an_adapter_whose_groups_are_no_whole_blocks_is_refused(make_packed_adapter: Make) -> None:
    weight = make_packed_adapter((40, 48), 16, "int4 channel", "int4 group 8", "int4 channel")
    said = "adapter B: scale groups of 8 inputs, not of whole 16"
    assert refusal(format_of(weight)) == said


def test_an_adapter_larger_than_a_tensor_is_refused(
    make_weight: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launches read factors from one tensor."""
    weight = format_of(make_weight((70, 32), "int4 channel", None, 32))
    assert refusal(weight) is None
    monkeypatch.setattr(strip_geometry, "LARGEST", Strips(weight.factor("B")).size(2))
    assert refusal(weight) == "adapter B: larger than a Vulkan buffer surely holds"


def test_a_weight_of_another_format_is_refused(make_weight: Make) -> None:
    strips = Strips(format_of(make_weight((8, 24), "int4 channel")))
    with pytest.raises(ConfigError, match=r"int4 channel cannot hold a weight of int4 tensor"):
        strips.pack(make_weight((8, 24), "int4 tensor"))
