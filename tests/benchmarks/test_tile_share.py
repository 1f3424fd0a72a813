"""benchmarks/tile_share.py: the line, and that stored bytes lie near one."""

from math import prod

import numpy as np
import pytest

from benchmarks import tile_share
from trinity.lowering.targets import targets
from trinity.lowering.targets.choose import storage_of


def test_values_on_a_line_are_on_it_and_a_bend_is_said() -> None:
    on_line, off = tile_share.line([5, 4, 3, 2, 1])
    np.testing.assert_allclose(on_line, [5, 4, 3, 2, 1])
    np.testing.assert_allclose(off, np.zeros(5), atol=1e-12)
    # By hand: the mean is 3.2, the slope 0.96 a quarter.
    on_line, off = tile_share.line([5, 4, 4, 2, 1])
    np.testing.assert_allclose(on_line, [5.2, 4.2, 3.2, 2.2, 1.2])
    np.testing.assert_allclose(off[2], 0.25)


def test_the_table_says_how_far_the_farthest_is() -> None:
    text = tile_share.table([500, 400, 400, 200, 100], [[5e-3], [4e-3], [3e-3], [2e-3], [1e-3]])
    assert text.count("\n| ") == 5
    assert "0.0% of time, 25.0% of bytes" in text
    assert "0.20 of the time" in text


@pytest.mark.parametrize(("dtype", "least"), [("float16", 0.6), ("float32", 0.55)])
def test_what_is_read_falls_in_a_straight_line(dtype: str, least: float) -> None:
    """Of a processor that puts kept entries in place by one instruction."""
    place = targets.get("llvm-cpu", "icelake-server")
    sizes = []
    for share in tile_share.SHARES:
        of = tile_share.format_at(share, (1024, 1024), dtype)
        shapes = storage_of(of, place).shapes().values()
        sizes.append(sum(prod(shape) * kind.itemsize for shape, kind in shapes))
    assert np.abs(tile_share.line(sizes)[1]).max() < 0.1
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < least * sizes[0]
