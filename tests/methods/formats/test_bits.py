"""methods/formats/bits.py."""

import pytest
import torch

from tests.oracles.quantization import pack_row
from trinity.methods.formats.bits import pack_bits, packed_width, unpack_bits


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 9, 16])
def test_codes_are_one_string_of_bits_the_first_in_the_lowest(bits: int, n: int) -> None:
    codes = torch.randint(0, 2**bits, (4, n), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.tolist() == [pack_row(row, bits) for row in codes.tolist()]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 11])
def test_three_bit_codes_are_a_plane_of_two_bits_and_then_a_plane_of_one(n: int) -> None:
    codes = torch.randint(0, 8, (4, n), dtype=torch.uint8)
    expected = [
        pack_row([code & 3 for code in row], 2) + pack_row([code >> 2 for code in row], 1)
        for row in codes.tolist()
    ]
    assert pack_bits(codes, 3).tolist() == expected


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 1), (3, 5), (2, 3, 9), (4, 0)], ids=str)
def test_unpacking_bits_inverts_packing_them(bits: int, shape: tuple[int, ...]) -> None:
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape[-1] == packed_width(shape[-1], bits)
    assert torch.equal(unpack_bits(packed, bits, shape[-1]), codes)


def test_packing_leaves_the_codes_unchanged() -> None:
    codes = torch.randint(0, 8, (3, 5), dtype=torch.uint8)
    before = codes.clone()
    pack_bits(codes, 3)
    assert torch.equal(codes, before)
