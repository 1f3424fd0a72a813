"""How rows and blocks of inputs are cut into tiles."""

from collections.abc import Callable

import pytest
import torch

from trinity.lowering.kernels.cpu.amx_floats import STEPS, FloatTiling
from trinity.lowering.kernels.cpu.instructions import TILED_ROWS
from trinity.lowering.kernels.cpu.panels import Panels
from trinity.lowering.kernels.cpu.tiling import Tiling
from trinity.methods.formats import CompressedWeight, Dense, format_of

Make = Callable[..., CompressedWeight]


@pytest.mark.parametrize("rows", [*range(TILED_ROWS, 300), 577, 1217])
def test_every_workgroup_has_rows_and_none_is_left_out(make_weight: Make, rows: int) -> None:
    tiling = Tiling(Panels(format_of(make_weight((5, 32), "int4 tensor"))), rows, 3)
    share = tiling.own * tiling.height
    assert tiling.height <= 16
    assert (tiling.parts - 1) * share < rows <= tiling.parts * share


@pytest.mark.parametrize("d_in", [66, 576, 11008])
def test_workgroups_of_floats_have_rows_and_cut_every_weight_once(d_in: int) -> None:
    panels = Panels(format_of(Dense(torch.zeros(80, d_in))))
    for rows in [*range(TILED_ROWS, 300), 577, 1217]:
        tiling = FloatTiling(panels, rows)
        share = tiling.own * tiling.height
        assert tiling.height <= 16
        assert (tiling.parts - 1) * share < rows <= tiling.parts * share
        slots = STEPS * max(1, tiling.own // 2)
        assert tiling.words * slots == tiling.block_words


@pytest.mark.parametrize("d_in", range(4, 600, 28))
def test_a_block_is_cut_into_whole_tiles(make_weight: Make, d_in: int) -> None:
    panels = Panels(format_of(make_weight((5, d_in), "int3 tensor")))
    tiling = Tiling(panels, 8, 3)
    assert panels.block % tiling.depth == 0
    assert tiling.depth <= 64
    assert tiling.depth % 4 == 0
