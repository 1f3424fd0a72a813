"""Panel storage: exact both ways, as small as it says, refused by name."""

from collections.abc import Callable

import pytest
import torch

from trinity.lowering.kernels.panels import Panels, refusal
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, format_of

Make = Callable[..., CompressedWeight]

HELD = [
    ((5, 7), "float16", None, 0),
    ((5, 7), "bfloat16", None, 3),
    ((70, 172), "int4 tensor", None, 0),
    ((3, 43), "int2 channel", None, 0),
    ((3, 43), "int3 channel asymmetric", None, 2),
    ((4, 30), "int3 group 10", None, 0),
    ((4, 24), "int8 group 6 asymmetric", None, 0),
    ((40, 600), "int4 group 300", None, 0),
    ((130, 172), "int4 channel", "2:4", 5),
    ((30, 1000), "int8 group 500", "3:4", 5),
    ((30, 64), "int4 group 16 asymmetric", "1:2", 0),
    ((30, 64), "int4 group 16", "4:8", 3),
    ((30, 60), "int3 group 12 asymmetric", "2:6", 0),
    ((30, 66), "int4 channel", "1:2", 0),
]


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), HELD)
def test_unpack_inverts_pack_exactly(
    make_weight: Make, shape: tuple[int, int], kind: str, pattern: str | None, rank: int
) -> None:
    weight = make_weight(shape, kind, pattern, rank, torch.float16)
    panels = Panels(format_of(weight))
    stored = panels.pack(weight)
    again = panels.unpack(stored)
    assert format_of(again) == format_of(weight)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert all(torch.equal(tensor, stored[key]) for key, tensor in panels.pack(again).items())


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), HELD)
def test_shapes_and_bits_are_those_of_the_stored_tensors(
    make_weight: Make, shape: tuple[int, int], kind: str, pattern: str | None, rank: int
) -> None:
    weight = make_weight(shape, kind, pattern, rank)
    panels = Panels(format_of(weight))
    stored = panels.pack(weight)
    found = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in stored.items()}
    assert found == panels.shapes()
    assert panels.bits() == 8 * sum(t.nbytes for t in stored.values()) / (shape[0] * shape[1])


def test_two_four_int4_takes_three_bits_and_its_scales(make_weight: Make) -> None:
    weight = make_weight((128, 256), "int4 group 128", "2:4", 0, torch.float16)
    assert Panels(format_of(weight)).bits() == 3 + 16 / 128


@pytest.mark.parametrize("kind", ["int4 group 8", "int8 channel asymmetric"])
def test_codes_that_an_unstructured_mask_removes_are_stored_as_zero(
    make_weight: Make, kind: str
) -> None:
    weight = make_weight((40, 24), kind, "50%", 2)
    panels = Panels(format_of(weight))
    assert "panel_bitmap" not in panels.shapes()
    assert torch.equal(panels.unpack(panels.pack(weight)).dequantize(), weight.dequantize())


@pytest.mark.parametrize(
    ("kind", "pattern", "reason"),
    [
        ("float16", "2:4", "masked floats"),
        ("float16", "50%", "masked floats"),
    ],
)
def test_what_panels_do_not_hold_is_said(
    make_weight: Make, kind: str, pattern: str | None, reason: str
) -> None:
    assert reason in str(refusal(format_of(make_weight((8, 24), kind, pattern))))


def test_a_weight_of_another_format_is_refused(make_weight: Make) -> None:
    panels = Panels(format_of(make_weight((8, 24), "int4 channel")))
    with pytest.raises(ConfigError, match=r"int4 channel cannot hold a weight of int8 channel"):
        panels.pack(make_weight((8, 24), "int8 channel"))
