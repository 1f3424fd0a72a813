"""methods/formats/tiles.py: tiles that are dense or 2:4, checked and stored."""

import pytest
import torch

from trinity.methods.errors import ConfigError
from trinity.methods.formats import (
    Dense,
    Quantized,
    Sparse,
    Tiles,
    WeightFormat,
    bits_per_weight,
    format_of,
    pack,
    parse_pattern,
    tiles,
    unpack,
)

SHAPES = [(16, 16), (20, 24), (9, 12), (8, 40)]


def _mask(shape: tuple[int, int], size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A random mask, and which tiles of it are sparse: some and not all."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = -(-shape[0] // size), -(-shape[1] // size)
    sparse = (torch.randperm(rows * columns, generator=generator) % 2 == 0).view(rows, columns)
    mask = torch.ones(shape, dtype=torch.bool)
    for row in range(shape[0]):
        for group in range(0, shape[1], 4):
            if sparse[row // size, group // size]:
                removed = torch.randperm(4, generator=generator)[:2] + group
                mask[row, removed] = False
    return mask, sparse


def _share(sparse: torch.Tensor, shape: tuple[int, int], size: int) -> float:
    inside = sum(
        bool(sparse[row // size, column // size])
        for row in range(shape[0])
        for column in range(shape[1])
    )
    return inside / (shape[0] * shape[1])


def _weight(shape: tuple[int, int], size: int, *, codes: bool = False) -> Sparse:
    mask, sparse = _mask(shape, size)
    generator = torch.Generator().manual_seed(1)
    pattern = Tiles(_share(sparse, shape, size), size)
    if not codes:
        return Sparse(Dense(torch.randn(shape, generator=generator)), mask, pattern)
    numbers = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
    return Sparse(Quantized(numbers, torch.full((1, 1), 0.5), None, 4), mask, pattern)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("codes", [False, True], ids=["floats", "codes"])
def test_what_is_stored_is_read_back(shape: tuple[int, int], codes: bool) -> None:
    weight = _weight(shape, 8, codes=codes)
    layout = format_of(weight)
    assert WeightFormat.from_json(layout.to_json()) == layout
    back = unpack(layout, pack(weight))
    assert isinstance(back, Sparse)
    assert torch.equal(back.mask, weight.mask)
    assert torch.equal(back.dequantize(), weight.dequantize())


@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_that_remove_something_are_found_by_a_plain_loop(shape: tuple[int, int]) -> None:
    mask, sparse = _mask(shape, 8)
    assert torch.equal(tiles.sparse_tiles(mask, 8), sparse)
    assert tiles.share_of(sparse, shape, 8) == _share(sparse, shape, 8)
    of_weights = tiles.expanded(sparse.float(), shape, 8)
    for row in range(shape[0]):
        for column in range(shape[1]):
            assert of_weights[row, column] == sparse[row // 8, column // 8]


def test_bits_are_those_of_the_kept_and_of_where_they_are() -> None:
    weight = _weight((16, 16), 8)  # two of four tiles are sparse
    kept = 128 + 64
    assert weight.sparsity == weight.pattern.sparsity == 0.25
    bits = (
        32 * kept + 2 * 64 + 2 * 8
    )  # values, two bits of each in 2:4 tiles, a byte a row of tiles
    assert bits_per_weight(weight) == bits / 256


def test_a_label_says_the_share_and_is_read_back() -> None:
    pattern = Tiles(1 / 3)
    assert str(Tiles(0.25)) == "2:4 in 25% by 128x128"
    assert parse_pattern(str(pattern)) == pattern
    assert format_of(_weight((16, 16), 8)).label == "2:4 in 50% by 8x8 float32"


def test_masks_that_break_the_pattern_are_refused() -> None:
    mask, sparse = _mask((16, 16), 8)
    pattern = Tiles(_share(sparse, (16, 16), 8), 8)
    row, column = (int(i) for i in (~mask).nonzero()[0])
    broken = mask.clone()
    broken[row, column] = True
    with pytest.raises(ConfigError, match=rf"row {row}, .* keep 3 entries"):
        Sparse(Dense(torch.ones(16, 16)), broken, pattern)
    with pytest.raises(ConfigError, match=r"0\.5 of the weights are in 2:4 tiles"):
        Sparse(Dense(torch.ones(16, 16)), mask, Tiles(0.25, 8))
    with pytest.raises(ConfigError, match="in = 6 is not a multiple of 4"):
        Sparse(Dense(torch.ones(4, 6)), torch.ones(4, 6, dtype=torch.bool), Tiles(0.5, 4))


@pytest.mark.parametrize(("share", "size"), [(0.0, 8), (1.0, 8), (0.5, 6), (0.5, 0)])
def test_patterns_that_are_none_are_refused(share: float, size: int) -> None:
    with pytest.raises(ConfigError, match="tiles: "):
        Tiles(share, size)


@pytest.mark.parametrize("shape", SHAPES)
def test_zeros_tell_the_mask_also_where_a_kept_weight_is_zero(shape: tuple[int, int]) -> None:
    weight = _weight(shape, 8)
    values = weight.dequantize()
    dense = tiles.expanded(~tiles.sparse_tiles(weight.mask, 8), shape, 8)
    values[tuple(dense.nonzero()[0])] = 0.0
    found = tiles.mask_of(values, 8)
    assert torch.equal(found, weight.mask)
    tiles.check(found, weight.pattern)  # type: ignore[arg-type]  # as `_weight` made it
