"""What is counted in machine code of tiles, and that docs/diary/gpu-floors.md holds it."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import amd_limits, amd_tiles

ROOT = Path(__file__).parents[3]
SAID = """
disasm:
BB0:
	v_mov_b32_e32 v0, v1                                          ; 1
BB1:
	s_barrier                                                     ; 2
	ds_write_b128 v3, v[4:7]                                      ; 3
BB2:
	v_fmac_f32_e32 v0, v4, v5                                     ; 4
	v_fmac_f32_e32 v0, v6, v7                                     ; 5
	s_cbranch_scc0 BB2                                            ; 6
BB3:
	v_fma_f32 v0, v4, v5, v6                                      ; 7
BB4:
	v_add_f32_e32 v0, v4, v5                                      ; 8
"""


def test_a_loop_over_fours_counts_for_each_of_them() -> None:
    body = amd_tiles.loop(SAID, 16)
    assert body.count("v_fmac_f32") == 16
    assert body.count("v_fma_f32") == body.count("ds_write_b128") == 1
    assert "v_mov" not in body
    assert "v_add" not in body


def test_what_was_unrolled_counts_once() -> None:
    assert amd_tiles.loop(SAID, 3).count("v_fmac_f32") == 2


def test_mesas_compiler_for_amd_takes_the_largest_tile_and_spills_no_register() -> None:
    if not Path(amd_limits.DRIVER).exists():
        pytest.skip("no RADV (Debian's mesa-vulkan-drivers)")
    row = amd_tiles.counted("navi21", "2:4 int4", amd_limits.formats()["2:4 int4"], 64)
    assert row["spilled"] == 0
    assert row["shared_bytes"] == 16384
    assert 1 < row["vector_instructions_a_product"] < 1.5


def test_the_page_holds_the_table_of_the_committed_record() -> None:
    record = json.loads((ROOT / "results/notes/amd-tiles.json").read_text("utf-8"))
    table = amd_tiles.markdown(record["counts"])
    assert table.count("\n") == 2 + 3 * 3 * 2
    assert table in (ROOT / "docs/diary/gpu-floors.md").read_text("utf-8")
