"""Panel storage: exact both ways, as small as it says, refused by name."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from trinity.lowering.kernels.cpu.panels import Panels
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Dense, Sparse, Unstructured, format_of

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
    ((3, 43), "nf4 channel", None, 2),
    ((40, 600), "nf4 group 300", "2:4", 0),
    ((70, 64), "e2m1 group 16 e4m3 outer", None, 0),
    ((20, 43), "rows of 3", None, 2),
    ((70, 300), "rows of 4", None, 0),
    ((70, 48), "nested 3 group 16", None, 3),
    ((530, 60), "nested 2 group 10", None, 0),
    ((5, 64), "nested 4 group 32", None, 0),
    ((70, 64), "e2m1 group 32 e8m0", "1:2", 0),
    ((40, 96), "e4m3 group 48 e4m3 outer", "50%", 0),
    ((5, 7), "float16", "50%", 0),
    ((130, 172), "bfloat16", "2:4", 5),
    ((30, 66), "float32", "1:3", 0),
    ((70, 300), "float16", "60%", 0),
    ((40, 300), "int8 channel", "50%", 0),
    ((530, 128), "int4 group 64 asymmetric", "50%", 3),
    ((64, 64), "float32", "2:4 in 50% by 16x16", 0),
    ((64, 64), "bfloat16", "2:4 in 25% by 32x32", 3),
    ((64, 64), "int2 channel", "2:4 in 50% by 16x16", 0),
    ((64, 128), "int4 group 32", "2:4 in 75% by 32x32", 0),
]


# As kinds of processors want their entries.
CHOICES = [{}, {"picks": True, "permutes": True}, {"expands": False}]


@pytest.mark.parametrize("chosen", CHOICES, ids=[" ".join(of) or "most" for of in CHOICES])
@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), HELD)
def test_unpack_inverts_pack_exactly(
    make_weight: Make,
    shape: tuple[int, int],
    kind: str,
    pattern: str | None,
    rank: int,
    chosen: dict[str, bool],
) -> None:
    weight = make_weight(shape, kind, pattern, rank, torch.float16)
    panels = Panels(format_of(weight), **chosen)
    stored = panels.pack(weight)
    again = panels.unpack(stored)
    assert format_of(again) == format_of(weight)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert all(torch.equal(tensor, stored[key]) for key, tensor in panels.pack(again).items())


@pytest.mark.parametrize("kind", ["int4 group 32", "rows of 3", "float16"])
def test_outliers_come_back_and_take_room_for_as_many_in_every_row(
    make_weight: Make, kind: str
) -> None:
    weight = make_weight((64, 128), kind, None, 3, torch.float16, 4)
    layout = format_of(weight)
    panels, alone = Panels(layout), Panels(replace(layout, outliers=None))
    again = panels.unpack(panels.pack(weight))
    assert format_of(again) == layout
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert panels.bits() - alone.bits() == 4 * (16 + 16) / 128


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), HELD)
def test_shapes_and_bits_are_those_of_the_stored_tensors(
    make_weight: Make, shape: tuple[int, int], kind: str, pattern: str | None, rank: int
) -> None:
    weight = make_weight(shape, kind, pattern, rank)
    panels = Panels(format_of(weight))
    stored = panels.pack(weight)
    # Positions take as much room as the bitmap.
    assert Panels(format_of(weight), picks=True).bits() == panels.bits()
    found = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in stored.items()}
    assert found == panels.shapes()
    assert panels.bits() == 8 * sum(t.nbytes for t in stored.values()) / (shape[0] * shape[1])


def test_two_four_int4_takes_three_bits_and_its_scales(make_weight: Make) -> None:
    weight = make_weight((128, 256), "int4 group 128", "2:4", 0, torch.float16)
    assert Panels(format_of(weight)).bits() == 3 + 16 / 128


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        ("nf4 group 64", 4 + 16 / 64),
        ("e2m1 group 32 e8m0", 4 + 8 / 32),
        ("e2m1 group 16 e4m3 outer", 4 + 8 / 16 + 64 * 8 / (128 * 256)),  # a cache line for one
        ("e4m3 channel", 8 + 16 / 256),
    ],
)
def test_levels_take_the_bits_of_their_codes_and_scales(
    make_weight: Make, kind: str, bits: float
) -> None:
    assert Panels(format_of(make_weight((128, 256), kind, None, 0, torch.float16))).bits() == bits


def test_half_of_int4_takes_the_bits_of_two_four_and_what_a_mask_may_vary(
    make_weight: Make,
) -> None:
    free = Panels(format_of(make_weight((256, 1024), "int4 group 128", "50%", 0, torch.float16)))
    strict = Panels(format_of(make_weight((256, 1024), "int4 group 128", "2:4", 0, torch.float16)))
    assert strict.bits() < free.bits() < strict.bits() + 0.13


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [("int2 channel", "50%"), ("int3 group 8", "50%"), ("int4 channel", "20%"), ("float16", "5%")],
)
def test_a_mask_that_saves_less_than_its_bitmap_is_stored_as_zeros(
    make_weight: Make, kind: str, pattern: str
) -> None:
    weight = make_weight((40, 24), kind, pattern, 2)
    panels = Panels(format_of(weight))
    assert "panel_bitmap" not in panels.part_shapes()
    assert torch.equal(panels.unpack(panels.pack(weight)).dequantize(), weight.dequantize())


def test_a_mask_that_keeps_more_than_its_pattern_says_is_refused() -> None:
    values = Dense(torch.randn(40, 64))
    honest = Sparse(values, torch.rand(40, 64) < 0.5, Unstructured(0.5))
    Panels(format_of(honest)).pack(honest)
    false = Sparse(values, torch.rand(40, 64) < 0.7, Unstructured(0.5))
    with pytest.raises(ConfigError, match=r"50% float32: the mask keeps 1\d+ of 2560 weights"):
        Panels(format_of(false)).pack(false)


def test_a_weight_of_another_format_is_refused(make_weight: Make) -> None:
    panels = Panels(format_of(make_weight((8, 24), "int4 channel")))
    with pytest.raises(ConfigError, match=r"int4 channel cannot hold a weight of int8 channel"):
        panels.pack(make_weight((8, 24), "int8 channel"))


def test_bytes_with_positions_have_a_name_of_their_own(make_weight: Make) -> None:
    half, full = (
        format_of(make_weight((16, 64), "int4 channel", pattern, 0, torch.float16))
        for pattern in ("2:4", None)
    )
    names = [list(Panels(of, picks).shapes()) for of in (half, full) for picks in (False, True)]
    assert names == [["panels"], ["picked_panels"], ["panels"], ["panels"]]
    floats = format_of(make_weight((16, 64), "float16", "2:4"))
    assert list(Panels(floats, permutes=True).shapes()) == ["picked_panels"]
    assert Panels(floats, permutes=True).bits() == 9


def test_only_codes_that_are_integers_have_positions(make_weight: Make) -> None:
    kinds = ("int4 channel", "e2m1 channel", "nf4 channel", "e4m3 channel")
    formats = [format_of(make_weight((16, 64), kind, "2:4")) for kind in kinds]
    assert [Panels(of, picks=True).picked for of in formats] == [True, True, False, False]


def test_a_stream_is_only_for_what_is_spread_faster_than_read(make_weight: Make) -> None:
    kinds = ("int4 channel", "int8 channel", "float16", "float32")
    formats = [format_of(make_weight((16, 64), kind, "50%")) for kind in kinds]
    assert [Panels(of).streamed for of in formats] == [True] * 4
    assert [Panels(of, expands=False).streamed for of in formats] == [False, False, False, True]
