"""Tile storage: exact both ways, as small as it says, and what tensor cores read out of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from trinity.lowering.kernels.cuda.tiles import Tiles, refusal
from trinity.lowering.kernels.padded_panels import two_of_four
from trinity.methods.errors import ConfigError
from trinity.methods.formats import CompressedWeight, Quantized, Sparse, format_of

Make = Callable[..., CompressedWeight]

HELD = [
    ((5, 7), "float16", None, 0),
    ((40, 100), "bfloat16", None, 3),
    ((5, 7), "int4 tensor", None, 0),
    ((5, 7), "int4 channel asymmetric", None, 3),
    ((70, 172), "int4 group 43", None, 20),
    ((130, 256), "int4 group 64 asymmetric", "2:4", 5),
    ((33, 128), "int4 group 32", "2:4", 0),
    ((30, 1000), "int4 group 500", "3:4", 5),
    ((30, 66), "int4 group 22 asymmetric", "1:2", 0),
    ((30, 64), "int4 channel", "1:4", 0),
    ((30, 64), "int4 group 16", "4:8", 3),
]


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), HELD)
def test_unpack_inverts_pack_exactly(
    make_weight: Make, shape: tuple[int, int], kind: str, pattern: str | None, rank: int
) -> None:
    weight = make_weight(shape, kind, pattern, rank, torch.float16)
    tiles = Tiles(format_of(weight))
    stored = tiles.pack(weight)
    again = tiles.unpack(stored)
    assert format_of(again) == format_of(weight)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert all(torch.equal(tensor, stored[key]) for key, tensor in tiles.pack(again).items())


@pytest.mark.parametrize(("shape", "kind", "pattern", "rank"), HELD)
def test_shapes_and_bits_are_those_of_the_stored_tensors(
    make_weight: Make, shape: tuple[int, int], kind: str, pattern: str | None, rank: int
) -> None:
    weight = make_weight(shape, kind, pattern, rank)
    tiles = Tiles(format_of(weight))
    stored = tiles.pack(weight)
    found = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in stored.items()}
    assert found == tiles.shapes()
    assert tiles.bits() == 8 * sum(t.nbytes for t in stored.values()) / (shape[0] * shape[1])


def test_two_four_int4_takes_three_bits_and_its_scales(make_weight: Make) -> None:
    weight = make_weight((128, 256), "int4 group 128", "2:4", 0, torch.float16)
    assert Tiles(format_of(weight)).bits() == 3 + 16 / 128


def test_a_mask_is_filled_up_to_two_of_four_from_behind() -> None:
    kept = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0]]).bool()
    filled = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0]]).bool()
    assert torch.equal(two_of_four(kept), filled)


def kept_entries(words: Tensor, selector: int) -> Tensor:
    """Which kept entry of its row stands at every input of a sparse product, -1 where none does.

    From the PTX ISA: the metadata of inputs 16 h to 16 h + 15 is with thread 2 f + h of every four,
    f being the selector; row g in the lower half of its word, row g + 8 in the upper, two bits an
    entry.  words: int32, one a lane  ->  [16, 32]
    """
    found = torch.full((16, 32), -1)
    for row in range(16):
        for half in range(2):
            bits = int(words[row % 8 * 4 + 2 * selector + half]) >> (16 * (row // 8))
            for entry in range(8):
                place = bits >> (2 * entry) & 3
                found[row, 16 * half + 4 * (entry // 2) + place] = 8 * half + entry
    return found


def read_as_operands(stored: dict[str, Tensor], panel: int, unit: int, tile: int) -> Tensor:
    """The 16 x 128 (2:4) or 16 x 64 raw codes of one unit, as `mma` and `mma.sp` read them.

    From the PTX ISA, lane by lane: elements a0 to a7 of a lane are in row g where the index is 0,
    1, 4 or 5 and in row g + 8 elsewhere, in column 2 t + (i mod 2), 8 further from a4 on.  What 2:4
    removes is -1.
    """
    codes = stored["tile_codes"][panel, unit, tile].contiguous().view(torch.int32)  # [lane, word]
    kept = torch.zeros(4, 16, 16, dtype=torch.int64)
    for lane in range(32):
        g, t = divmod(lane, 4)
        for step in range(4):
            word = int(codes[lane, step])
            for i in range(8):
                row = g if i in (0, 1, 4, 5) else g + 8
                column = 2 * t + i % 2 + (8 if i >= 4 else 0)
                # Registers follow each other by nibbles, the two halves of each by 16 bits.
                kept[step, row, column] = word >> (4 * (i // 2) + 16 * (i % 2)) & 15
    if "tile_places" not in stored:
        return kept.permute(1, 0, 2).reshape(16, 64)
    places = stored["tile_places"][panel, unit].contiguous().view(torch.int32)  # [lane, word]
    return torch.cat(
        [
            expanded(kept[step], kept_entries(places[:, 2 * tile + step // 2], step % 2))
            for step in range(4)
        ],
        dim=1,
    )


def expanded(kept: Tensor, entries: Tensor) -> Tensor:
    """Kept numbers at their inputs, -1 elsewhere.  [16, 16], [16, 32] -> [16, 32]"""
    return torch.where(entries >= 0, kept.gather(1, entries.clamp(min=0)), -1)


def test_metadata_is_read_as_torch_orders_it_for_the_same_instruction() -> None:
    """An oracle from elsewhere: the order that torch's sparse products take from CUTLASS."""
    mask = torch.rand(32, 16, 4).argsort(-1) < 2
    dense = torch.randint(1, 1000, (32, 64)) * mask.view(32, 64)
    kept, metadata = sparse_semi_structured_from_dense_cutlass(dense.half())
    words = metadata.flatten().view(torch.int32).view(2, 32)  # 32 rows a lane, by 32 inputs
    for block in range(2):
        for tile in range(2):  # of 16 rows: the selector
            rows = slice(16 * tile, 16 * tile + 16)
            values = kept[rows, 16 * block : 16 * block + 16].long()
            found = expanded(values, kept_entries(words[block], tile))
            expected = dense[rows, 32 * block : 32 * block + 32]
            assert torch.equal(found.clamp(min=0), expected)


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_tensor_cores_read_every_code_in_its_place(make_weight: Make, pattern: str | None) -> None:
    weight = make_weight((70, 256), "int4 group 64 asymmetric", pattern)
    base = weight.values if isinstance(weight, Sparse) else weight
    assert isinstance(base, Quantized)
    expected = base.codes.long()
    if isinstance(weight, Sparse):
        expected = torch.where(weight.mask, expected, -1)
    tiles = Tiles(format_of(weight))
    stored = tiles.pack(weight)
    for panel in range(tiles.panels):
        for tile in range(2):
            first = 32 * panel + 16 * tile
            units = [read_as_operands(stored, panel, u, tile) for u in range(tiles.units)]
            rows = expected[first : first + 16]
            assert torch.equal(torch.cat(units, dim=1)[: len(rows)], rows)


@pytest.mark.parametrize(
    ("kind", "pattern", "rank", "reason"),
    [
        ("float32", None, 3, "float32 has nothing to unpack"),
        ("float16", "2:4", 0, "masked floats"),
        ("int8 channel", None, 0, "codes of 8 bits"),
        ("int3 channel", "2:4", 0, "codes of 3 bits"),
    ],
)
def test_what_tiles_do_not_hold_is_said(
    make_weight: Make, kind: str, pattern: str | None, rank: int, reason: str
) -> None:
    assert refusal(format_of(make_weight((8, 24), kind, pattern, rank))) == reason


@pytest.mark.parametrize(
    ("high", "low", "reason"),
    [
        ("float32", "int4 channel", "adapter B: float32 has nothing to unpack"),
        ("int4 channel", "int8 channel", "adapter A: codes of 8 bits"),
        ("int4 group 8", "int4 channel", "adapter B: scale groups of 8 inputs, not of whole 32"),
    ],
)
def test_an_adapter_that_tiles_do_not_hold_is_said(
    make_packed_adapter: Make, high: str, low: str, reason: str
) -> None:
    weight = make_packed_adapter((40, 48), 16, "int4 channel", high, low)
    assert refusal(format_of(weight)) == reason


def test_a_weight_of_another_format_is_refused(make_weight: Make) -> None:
    tiles = Tiles(format_of(make_weight((8, 24), "int4 channel")))
    with pytest.raises(ConfigError, match=r"int4 channel cannot hold a weight of int4 tensor"):
        tiles.pack(make_weight((8, 24), "int4 tensor"))
