"""Which codes are integers, and what they stand for."""

from collections.abc import Callable

import pytest
import torch

from trinity.lowering.kernels.cpu.integers import Integers, integers_of
from trinity.methods.formats import CompressedWeight, format_of
from trinity.methods.formats.level_tables import levels

Make = Callable[..., CompressedWeight]


def test_four_bit_floats_are_half_steps_from_a_zero_point(make_weight: Make) -> None:
    found = integers_of(format_of(make_weight((4, 32), "e2m1 group 32 e8m0")))
    assert found is not None
    assert (found.step, found.zero, found.largest, found.furthest) == (0.5, 12, 24, 12)
    assert found.zero is not None
    assert found.table is not None
    meant = [found.step * (byte - found.zero) for byte in found.table]
    assert torch.equal(torch.tensor(meant), levels("e2m1"))


@pytest.mark.parametrize("kind", ["nf4 group 8", "e4m3 channel", "float16"])
def test_levels_that_share_no_step_and_floats_are_no_integers(make_weight: Make, kind: str) -> None:
    assert integers_of(format_of(make_weight((4, 32), kind))) is None


@pytest.mark.parametrize(
    ("kind", "expected", "fits"),
    [
        ("int4 channel", Integers(15, 8), True),
        ("int8 channel", Integers(255, 128), True),
        ("int4 channel asymmetric", Integers(15, None), True),
        ("int8 channel asymmetric", Integers(255, None), False),
    ],
)
def test_codes_of_a_grid_are_their_bytes(
    make_weight: Make, kind: str, expected: Integers, fits: bool
) -> None:
    found = integers_of(format_of(make_weight((4, 32), kind)))
    assert found == expected
    assert found.fit_signed == fits
